/* Tests that cannot begin: the module's initialiser does not end. */
#include "microvm_test.h"

__attribute__((constructor)) static void set_up(void) {
    for (volatile int lap = 0;; lap++)
        ;
}

MICROVM_TEST(test_one) {}
MICROVM_TEST(test_two) {}
