/* Tests that are all skipped by the module's initialiser. */
#include "microvm_test.h"

__attribute__((constructor)) static void set_up(void) { microvm_skip("not on this machine"); }

MICROVM_TEST(test_one) { CHECK(false); }
MICROVM_TEST(test_two) { CHECK(false); }
