/* Initialisers run in the order of their priorities, before anything else. */
#include "microvm.h"

static char order[16];
static size_t count;

static void note(char letter) {
    if (count < sizeof order)
        order[count++] = letter;
}

__attribute__((constructor(103))) static void third(void) { note('c'); }
__attribute__((constructor(101))) static void first(void) { note('a'); }
__attribute__((constructor)) static void last(void) { note('d'); }
__attribute__((constructor(102))) static void second(void) { note('b'); }

/* Output and time are there already. */
__attribute__((constructor(104))) static void speak(void) { printf("initialized at %s\n", order); }

/* "abcd" */
struct microvm_span initialization_order(void) { return (struct microvm_span){order, count}; }

/* A table of pointers: relocations in data. */
static const char *const names[] = {"zero", "one", "two", "three"};
struct microvm_span name_of(uint64_t number) {
    const char *name = number < 4 ? names[number] : "many";
    return (struct microvm_span){(void *)name, strlen(name)};
}

/* Function pointers, also of exports. */
int64_t twice(int64_t value) { return 2 * value; }
int64_t square(int64_t value) { return value * value; }
int64_t (*operations[])(int64_t) = {twice, square};
int64_t apply(uint64_t operation, int64_t value) { return operations[operation % 2](value); }
