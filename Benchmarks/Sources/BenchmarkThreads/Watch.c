#include "Watch.h"

#include <sched.h>
#include <time.h>

uint64_t watch_word(const void *word) {
    return __atomic_load_n((const uint64_t *)word, __ATOMIC_ACQUIRE);
}

bool watch_until_changed(const void *word, uint64_t from) {
    for (uint64_t looks = 0; looks < WATCH_LOOKS; looks++) {
        if (watch_word(word) != from) {
            return true;
        }
        sched_yield();
    }
    return false;
}

void watch_pause(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}
