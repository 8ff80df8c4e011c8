#include "Heaps.h"

#include <malloc.h>

void heaps_begin_large(void) {
    mallopt(M_TOP_PAD, 16 << 20);
}
