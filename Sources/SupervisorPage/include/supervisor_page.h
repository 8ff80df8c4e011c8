#ifndef SUPERVISOR_PAGE_H
#define SUPERVISOR_PAGE_H

#include <stddef.h>

/// The first byte of the page, an HTML file in UTF-8; valid for as long as the process runs.
const unsigned char *supervisor_page_bytes(void);
/// How many bytes it has.
size_t supervisor_page_size(void);

#endif
