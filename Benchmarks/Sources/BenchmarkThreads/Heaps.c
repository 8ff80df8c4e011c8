#include <malloc.h>

// Has the C library's heaps begin with 16 MiB of addresses. Where they grow, they do so by a page at a time, which
// changes a mapping, and Linux tells every virtual machine of the process of that. Before any thread is started: each
// has a heap of its own from then on.
__attribute__((constructor)) static void begin_large(void) {
    mallopt(M_TOP_PAD, 16 << 20);
}
