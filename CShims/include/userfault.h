// userfaultfd(2) and ioctl_userfaultfd(2): page faults that this process serves itself.
#ifndef SWIFT_MICROVM_USERFAULT_H
#define SWIFT_MICROVM_USERFAULT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

// Each function returns what is said, or a negated error number.

// A descriptor that tells faults of the kernel's own accesses too, KVM's among them, and when memory it watches is
// unmapped. Reading it never waits, and it does not survive exec.
int shim_userfault_open(void);

// To be called once, before system calls are filtered: opening a descriptor needs no file from then on, or is refused.
void shim_userfault_confine(bool keeps_device);

// Faults of absent pages in whole pages of private memory, from now on.
int shim_userfault_register(int descriptor, uint64_t start, uint64_t count);
// Not any more; whoever waits there tries again.
int shim_userfault_unregister(int descriptor, uint64_t start, uint64_t count);

// Fills absent pages, and wakes who waits for them. The number of bytes, which may be less than asked for; EEXIST when
// the first page is there already, ENOENT when the pages are not in one registered mapping, EAGAIN while memory is
// being unmapped.
int64_t shim_userfault_copy(int descriptor, uint64_t to, const void *_Nonnull from, uint64_t count);
int64_t shim_userfault_zero(int descriptor, uint64_t to, uint64_t count);

// Whoever waits for one of these pages tries again.
int shim_userfault_wake(int descriptor, uint64_t start, uint64_t count);

// What shim_userfault_read found.
#define SHIM_USERFAULT_NOTHING 0
#define SHIM_USERFAULT_FAULT 1
#define SHIM_USERFAULT_UNMAPPED 2
// Something that nobody asked for.
#define SHIM_USERFAULT_OTHER 3

struct shim_userfault_message {
    uint64_t start;  // of the page that was accessed, or of the memory that was unmapped
    uint64_t end;    // of the memory that was unmapped
};

// One of the above.
int shim_userfault_read(int descriptor, struct shim_userfault_message *_Nonnull message);

// An eventfd(2) that is not set. Neither setting nor resetting it ever waits.
int shim_event_open(void);
void shim_event_set(int event);
void shim_event_reset(int event);

// Waits until one of the two can be read, or for so many milliseconds (-1: for ever).
void shim_event_wait(int descriptor, int event, int milliseconds);

// Makes pages present as if each were read, or written: 0, or the error number's negative where an access would have
// ended in a signal. MADV_POPULATE_READ and MADV_POPULATE_WRITE (Linux 5.14).
int shim_populate(uint64_t start, uint64_t count, int for_writing);

// accept4(2): a connection that does not survive exec.
int shim_accept(int listener);

// Begins a joinable thread with every signal blocked but those that report its own faults. 0 or an errno.
int shim_helper_thread_create(pthread_t *_Nonnull thread, const char *_Nonnull name,
                              void *_Nullable (*_Nonnull start)(void *_Nullable), void *_Nullable argument);

#endif
