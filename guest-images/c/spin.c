/* Guests that do not come back by themselves. */
#include "microvm.h"

/* Spins for ever without touching anything. */
void spin(void) {
    for (;;)
        __asm__ volatile("pause");
}

/* Says in a word of memory that it is running, and then spins for ever. */
void spin_and_say_so(volatile uint64_t *place) {
    *place = 1;
    for (;;)
        __asm__ volatile("pause");
}

/* Says so too, and returns when somebody has written 2 there. */
void spin_until(volatile uint64_t *place) {
    *place = 1;
    while (*place != 2)
        __asm__ volatile("pause");
}

/* Spins for ever and writes a word each time around: how far it came, for whoever looks at memory. */
static volatile uint64_t laps;
void spin_and_count(void) {
    for (;;)
        laps++;
}
uint64_t get_laps(void) { return laps; }

/* Spins until the monotonic clock has moved on by so many nanoseconds, with a host call in each lap, and returns the
 * number of laps. */
int64_t spin_for(uint64_t nanoseconds) {
    uint64_t end = microvm_clock(MICROVM_CLOCK_MONOTONIC) + nanoseconds;
    int64_t count = 0;
    do
        count++;
    while (microvm_clock(MICROVM_CLOCK_MONOTONIC) < end);
    return count;
}

/* Makes host calls for ever. */
void spin_with_host_calls(void) {
    for (;;)
        microvm_clock(MICROVM_CLOCK_MONOTONIC);
}

/* Writes output for ever. */
void spin_with_output(void) {
    for (;;)
        microvm_write(MICROVM_STANDARD_OUTPUT, "x", 1);
}

/* So many iterations of nothing, then returns the number. */
int64_t iterate(int64_t count) {
    for (int64_t i = 0; i < count; i++)
        __asm__ volatile("");
    return count;
}

int64_t answer(void) { return 42; }
