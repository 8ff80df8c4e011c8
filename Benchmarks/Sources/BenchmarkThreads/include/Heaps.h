#ifndef HEAPS_H
#define HEAPS_H

/// Has the C library's heaps begin with 16 MiB of addresses. Where they grow, they do so by a page at a time, which
/// changes a mapping, and Linux tells every virtual machine of the process of that. Before any thread is started.
void heaps_begin_large(void);

#endif
