/* A module that needs more than the host has. */
#include "microvm.h"

int64_t first_missing_function(int64_t value);
int64_t second_missing_function(int64_t value);

int64_t use_both(int64_t value) { return first_missing_function(value) + second_missing_function(value); }
