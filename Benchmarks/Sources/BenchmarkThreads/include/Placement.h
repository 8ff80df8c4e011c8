#ifndef PLACEMENT_H
#define PLACEMENT_H

#include <pthread.h>
#include <stdbool.h>

// Which processors the threads of the process run on, plain C's and the library's alike.
//
// Two threads hand work to each other several times faster on one processor than across two, and one of two processors
// may be slower for a while. Each benchmark has its placement, so that chance does not choose one for either side.

/// Whether the process may run on more than one processor, no placement being in force.
bool placement_has_two_processors(void);

/// Confines every thread of the process, and with them those they start, to the first processor that it may run on.
///
/// With `two_processors`, threads that call `placement_adopt_guest` go to the second one, where there is one.
/// Returns 0 or an errno, as the other two do.
int placement_begin(bool two_processors);

/// Lets every thread run anywhere again.
int placement_end(void);

/// Confines the calling thread, a virtual CPU's, to the processor for guests. Without a placement it does nothing.
int placement_adopt_guest(void);

// Moves a thread that a virtual CPU's thread has begun to where the others are, if a placement is in force.
void placement_leave_guest(pthread_t thread);

#endif
