#ifndef ALLOCATION_COUNTER_H
#define ALLOCATION_COUNTER_H

#include <stdbool.h>
#include <stdint.h>

// How many blocks the calling thread has asked of the C allocator so far.
//
// Linking this target puts its malloc family in front of the C library's; each call counts once and goes on there. Under
// a sanitizer, which does the same, nothing is counted, and this is always 0.
uint64_t allocation_count_of_thread(void);
bool allocations_are_counted(void);

#endif
