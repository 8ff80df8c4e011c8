/* A guest to be looked at with a debugger: built without optimisation, and with debug information. */
#include "microvm.h"

__attribute__((weak)) uint64_t host_touch(uint64_t value);

struct point {
    int64_t x;
    int64_t y;
    const char *label;
};

static int64_t counter;
static struct point origin = {3, 4, "origin"};
volatile uint64_t stop_spinning;

static int64_t square(int64_t number) {
    int64_t result = number * number;
    return result;
}

static int64_t distance(const struct point *point) {
    int64_t horizontal = square(point->x);
    int64_t vertical = square(point->y);
    counter += 1;
    return horizontal + vertical;
}

int64_t measure(int64_t scale) {
    struct point scaled = {origin.x * scale, origin.y * scale, "scaled"};
    int64_t result = distance(&scaled);
    counter += 10;
    return result;
}

int64_t recurse(int64_t depth) {
    if (depth == 0)
        return measure(1);
    return recurse(depth - 1) + 1;
}

/* Spins until a debugger, or the host, changes a variable. */
uint64_t spin_until_stopped(void) {
    uint64_t laps = 0;
    while (!stop_spinning)
        laps++;
    stop_spinning = 0;
    return laps;
}

uint64_t touch(uint64_t value) {
    uint64_t answer = host_touch(value);
    return answer + 1;
}

int64_t crash(int64_t *place) {
    int64_t before = 7;
    *place = before;
    return before;
}

double vectors(double left, double right) {
    double sum = left + right;
    return sum * 2;
}

/* What `pushf` says of the flags. */
uint64_t read_flags(void) {
    uint64_t flags;
    __asm__ volatile("pushf\n\tpop %0" : "=r"(flags));
    return flags;
}

int64_t get_counter(void) { return counter; }
