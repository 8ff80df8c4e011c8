#include "supervisor_page.h"

extern const unsigned char supervisor_page_begin[];
extern const unsigned char supervisor_page_end[];

const unsigned char *supervisor_page_bytes(void) { return supervisor_page_begin; }

size_t supervisor_page_size(void) { return (size_t)(supervisor_page_end - supervisor_page_begin); }
