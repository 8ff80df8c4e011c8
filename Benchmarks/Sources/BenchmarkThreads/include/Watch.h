#ifndef WATCH_H
#define WATCH_H

#include <stdbool.h>
#include <stdint.h>

// How a thread that holds guests and lets them go sees that they run: by a word that the guest counts in. Plain C and
// the library use these same functions.

/// How often somebody looks who waits for the other thread: some seconds, far longer than anything takes.
#define WATCH_LOOKS UINT64_C(10000000)

/// What a word of 64 bits is now.
uint64_t watch_word(const void *word);

/// Looks at the word until it is not `from` any more, and leaves the processor to others meanwhile. Whether it has
/// changed within some seconds.
bool watch_until_changed(const void *word, uint64_t from);

/// Sleeps for a millisecond: long enough for the other thread to be where it stays.
void watch_pause(void);

#endif
