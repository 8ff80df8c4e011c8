/* Tests that cannot begin: the module's initialiser fails. */
#include "microvm_test.h"

__attribute__((constructor)) static void set_up(void) {
    printf("setting up\n");
    microvm_abort("no tables to be had", 19);
}

MICROVM_TEST(test_one) {}
MICROVM_TEST(test_two) {}
MICROVM_TEST(test_three) {}
