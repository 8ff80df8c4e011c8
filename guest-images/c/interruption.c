/* What a guest can be doing when somebody ends or holds it: counting, host calls of every kind, and calls in calls.
 * Each host call carries the number that its guest call was given. */
#include "microvm.h"

int64_t host_note(uint64_t number);                    /* comes back at once */
void host_wait(uint64_t number);                       /* takes a while */
int64_t host_nest(uint64_t number, int64_t depth);     /* the host calls `descend` */
int64_t host_nest_later(uint64_t number, int64_t depth); /* the same, asynchronously */

int64_t answer(void) { return 42; }

/* Counts in the first word until the second one is not 0, and returns how far it came. */
uint64_t count_until(volatile uint64_t *words) {
    do
        words[0]++;
    while (words[1] == 0);
    return words[0];
}

/* The same, below a host call. */
int64_t note_and_count(uint64_t number, volatile uint64_t *words) {
    host_note(number);
    return (int64_t)count_until(words);
}

int64_t note(uint64_t number) { return host_note(number); }
void wait(uint64_t number) { host_wait(number); }

int64_t notes(uint64_t number, int64_t count) {
    int64_t last = 0;
    for (int64_t i = 0; i < count; i++)
        last = host_note(number);
    return last;
}

int64_t waits(uint64_t number, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        host_wait(number);
    return count;
}

void note_then_spin(uint64_t number) {
    host_note(number);
    for (;;)
        __asm__ volatile("pause");
}

void spin(void) {
    for (;;)
        __asm__ volatile("pause");
}

int64_t iterate(int64_t count) {
    for (int64_t i = 0; i < count; i++)
        __asm__ volatile("");
    return count;
}

/* Host calls for ever, from a loop and from a function that the loop calls. */
void note_for_ever(uint64_t number) {
    for (;;)
        host_note(number);
}

__attribute__((noinline)) static int64_t note_in_a_function(uint64_t number) {
    int64_t result = host_note(number);
    __asm__ volatile("" ::: "memory");
    return result + 1;
}

void note_in_functions_for_ever(uint64_t number) {
    for (;;)
        note_in_a_function(number);
}

/* Down through the host and back: even depths one way, odd ones the other. How many levels there were. */
int64_t descend(uint64_t number, int64_t depth) {
    if (depth <= 0)
        return iterate(100) - 100;
    return 1 + (depth % 2 ? host_nest_later(number, depth - 1) : host_nest(number, depth - 1));
}
