/* The smallest guest that says something. */
#include "microvm.h"

/* Writes a line to standard output and returns its length in bytes. */
int64_t hello(void) {
    return printf("Hello from a micro-VM\n");
}

/* Greets someone by name, on standard output. */
void greet(const char *name, size_t length) {
    printf("Hello, %.*s!\n", (int)length, name);
}

/* Writes to standard error. */
void complain(const char *text, size_t length) {
    microvm_write(MICROVM_STANDARD_ERROR, text, length);
}

int64_t answer(void) {
    return 42;
}
