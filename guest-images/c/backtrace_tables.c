/* The same stacks without frame pointers, and with tables that say how to walk them. */
#include "backtrace.c"
