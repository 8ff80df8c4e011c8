#ifndef SYSTEM_CALL_COUNTER_H
#define SYSTEM_CALL_COUNTER_H

#include <stdint.h>

// How many times the calling thread has set a timer (timer_settime) by the C library's `syscall` so far.
//
// Linking this target puts its `syscall` in front of the C library's; each call counts and then does what that does.
uint64_t timer_settings_of_thread(void);

#endif
