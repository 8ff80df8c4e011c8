/* A module whose initialiser ends the guest. */
#include "microvm.h"

__attribute__((constructor)) static void abort_while_loading(void) {
    microvm_abort("the initializer gave up", 23);
}

int64_t answer(void) { return 42; }
