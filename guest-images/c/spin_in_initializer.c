/* A module whose initialiser never ends. */
#include "microvm.h"

__attribute__((constructor)) static void spin_while_loading(void) {
    for (;;)
        __asm__ volatile("pause");
}

int64_t answer(void) { return 42; }
