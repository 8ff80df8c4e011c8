#ifndef SYSTEM_CALL_COUNTER_H
#define SYSTEM_CALL_COUNTER_H

#include <stdbool.h>
#include <stdint.h>

// How many times the calling thread has set a timer (timer_settime) by the C library's `syscall` so far.
//
// Linking this target puts its `syscall` in front of the C library's; each call counts and then does what that does.
uint64_t timer_settings_of_thread(void);

// The changes of memory mappings by this process so far that Linux tells every virtual machine of it: what was mapped
// is replaced, removed, protected or dropped (mmap with MAP_FIXED, munmap, mprotect, madvise with MADV_DONTNEED). The C
// library's own are not counted.
uint64_t mapping_changes(void);

// False where a sanitizer has functions of its own for that.
bool mapping_changes_are_counted(void);

// The lowest address of the calling thread's stack, its guard included; NULL where the C library does not say.
void *stack_end_of_thread(void);

#endif
