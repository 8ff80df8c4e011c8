#ifndef ALLOCATION_COUNTER_H
#define ALLOCATION_COUNTER_H

#include <stdint.h>

/// How many blocks this process has asked of the C allocator so far, on all threads.
///
/// Linking this target puts its malloc family in front of the C library's; each call counts once and goes on there.
uint64_t allocation_count(void);

#endif
