/* A tenant that leaves its bytes in every corner of its memory, for tests that look for them in the next one's. */
#include "microvm.h"

static uint64_t initialised[600] = {1};
static uint64_t uninitialised[600];
static __thread uint64_t local;

enum end { END_RETURN, END_FAULT, END_ABORT, END_SPIN };

static uint64_t next(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

__attribute__((noinline)) static void hide_on_stack(uint64_t value) {
    volatile uint64_t words[2048];
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        words[i] = value;
}

/* Hides a word in so many places of the heap and everywhere else, and ends in one of several ways. */
uint64_t hide(const uint8_t *bytes, size_t length, uint64_t seed, uint64_t places, uint64_t end) {
    uint64_t value = 0;
    memcpy(&value, bytes, length < sizeof value ? length : sizeof value);
    struct microvm_span heap = microvm_heap();
    volatile uint64_t *words = heap.base;
    for (uint64_t i = 0; i < places; i++)
        words[next(&seed) % (heap.length / 8)] = value;
    for (size_t i = 0; i < 600; i++)
        initialised[i] = uninitialised[i] = value;
    local = value;
    hide_on_stack(value);
    volatile uint64_t *grown = microvm_heap_grow(65536);
    for (size_t i = 0; grown && i < 65536 / 8; i += 100)
        grown[i] = value;
    switch (end) {
    case END_FAULT: *(volatile uint64_t *)(uintptr_t)(seed & 0xff) = value; break;
    case END_ABORT: microvm_abort((const char *)bytes, length);
    case END_SPIN:
        for (;;)
            __asm__ volatile("pause");
    }
    return value;
}

/* How many times it has been called. */
int64_t count(void) {
    static int64_t counter;
    return ++counter;
}

int64_t answer(void) { return 42; }
