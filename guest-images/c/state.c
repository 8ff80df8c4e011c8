/* Keeps state in every kind of memory a guest has, for tests that take snapshots of it. */
#include "microvm.h"

static uint64_t initialised = 7;
static uint64_t uninitialised[1024];
static __thread uint64_t local = 11;

/* A word of each kind, the heap's first one included. */
void set_state(uint64_t value) {
    struct microvm_span heap = microvm_heap();
    initialised = value;
    uninitialised[0] = uninitialised[1023] = value;
    local = value;
    *(volatile uint64_t *)heap.base = value;
}

/* All words of state, as one number of which every digit tells one of them. */
uint64_t get_state(void) {
    struct microvm_span heap = microvm_heap();
    uint64_t words[] = {initialised, uninitialised[0], uninitialised[1023], local, *(volatile uint64_t *)heap.base};
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        sum = sum * 1000 + words[i];
    return sum;
}

int64_t count(void) {
    static int64_t counter;
    return ++counter;
}

/* Writes a word into each of `count` pages of the heap, `stride` pages apart, beginning with page `first`. */
void write_pages(uint64_t first, uint64_t count, uint64_t stride, uint64_t value) {
    uint8_t *heap = microvm_heap().base;
    for (uint64_t i = 0; i < count; i++)
        *(volatile uint64_t *)(heap + (first + i * stride) * 4096) = value + i;
}

/* Their sum, and the page's number with each. */
uint64_t read_pages(uint64_t first, uint64_t count, uint64_t stride) {
    uint8_t *heap = microvm_heap().base;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += *(volatile uint64_t *)(heap + (first + i * stride) * 4096) * (i + 1);
    return sum;
}

/* The heap's size in bytes, and the end it had before it grew, or 0. */
uint64_t heap_size(void) { return microvm_heap().length; }
uint64_t grow_heap(uint64_t size) { return (uint64_t)microvm_heap_grow(size); }

/* A load and a store anywhere. */
uint64_t peek(const volatile uint64_t *place) { return *place; }
void poke(volatile uint64_t *place, uint64_t value) { *place = value; }

/* Says in a word that it spins, until that is 2; then the sum of numbers it has kept in registers all the while. */
uint64_t hold_and_sum(volatile uint64_t *place, uint64_t seed) {
    uint64_t a = seed, b = seed * 3, c = seed * 5, d = seed * 7;
    double x = (double)seed, y = (double)seed * 0.5;
    *place = 1;
    while (*place != 2)
        __asm__ volatile("pause" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+x"(x), "+x"(y));
    return a + b + c + d + (uint64_t)(x + y);
}

void spin_for_ever(volatile uint64_t *place) {
    *place = 1;
    for (;;)
        __asm__ volatile("pause");
}

int64_t answer(void) { return 42; }
