#ifndef KILLER_H
#define KILLER_H

#include <stdint.h>

// A thread of its own that ends guest calls, as a supervisor does. Plain C and the library use this same one, so that
// nothing differs but how a call is ended.

typedef struct killer killer;

/// What somebody who ended a guest call found and did.
typedef enum {
    /// No call yet: to be tried again.
    KILL_TOO_EARLY,
    /// A call, but not in the guest: it ends, and tells nothing about the time that takes.
    KILL_OUTSIDE_GUEST,
    /// A guest that was running, and that has been told to leave.
    KILL_IN_GUEST,
} kill_outcome;

/// Starts a thread that may run where the calling one may. Returns 0 or an errno.
int killer_create(killer **killer);

/// Ends the thread. A kill that was ordered and has found no call yet is given up.
void killer_destroy(killer *killer);

/// Asks for one kill, a millisecond from now: long enough for the caller, a virtual CPU's thread, to enter its guest.
void killer_order(killer *killer, kill_outcome (*kill)(void *context), void *context);

/// Waits until the kill that was ordered is over.
///
/// Returns when it began, by the monotonic clock in nanoseconds, or 0 if it found no guest running.
uint64_t killer_finish(killer *killer);

#endif
