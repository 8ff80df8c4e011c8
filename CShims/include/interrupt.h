// Signals, timers, threads and futexes for the interruption of a virtual CPU.
#ifndef SWIFT_MICROVM_INTERRUPT_H
#define SWIFT_MICROVM_INTERRUPT_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

// The state word's flags: see the article Interruption. Above them the reason why a call shall end, and its number.
#define SHIM_STATE_CANCEL (1ull << 0)
#define SHIM_STATE_IN_CALL (1ull << 4)
#define SHIM_STATE_DECIDED (1ull << 6)
#define SHIM_STATE_REASON_SHIFT 8
// Reasons that the timers' signals give.
#define SHIM_REASON_TIME_LIMIT 3
#define SHIM_REASON_CPU_TIME_LIMIT 4
// The reason that a violation of the thread's confinement gives.
#define SHIM_REASON_CONFINEMENT 5
// No reason: a timer whose signal only has the guest left.
#define SHIM_REASON_NONE 7

// What the signal handler may touch, one for each virtual CPU thread. The words are only ever accessed atomically.
struct shim_interrupt_target {
    uint64_t state;                     // flags, reason and number of the call
    uint8_t *_Nullable immediate_exit;  // kvm_run.immediate_exit, or null while there is no virtual CPU
    uint32_t departures;                // changes when the guest has been left: what killers sleep on
    uint32_t attention;                 // changes when the waiting thread must look again: what it sleeps on
    uint32_t senders;                   // who may be sending signals: what the closing sleeps on
    int32_t thread;                     // the thread that signals are sent to, 0 while there is none
};

// SIGRTMIN and SIGRTMAX, which are function calls in disguise.
int shim_signal_minimum(void);
int shim_signal_maximum(void);

// Installs the handler for one real-time signal, once in a process; whatever handler was there before is called for
// every signal that was not sent by shim_interrupt_send or by a timer of shim_timer_create. 0 or an errno.
int shim_interrupt_install(int signal);

// The signals that the library's own threads block: all but faults of the host's own code, which blocking would only
// turn from a crash report into silence.
void shim_own_thread_mask(sigset_t *_Nonnull mask);

// Begins a detached thread, named microvm-vcpu, on the caller's processor, with every signal blocked but `signal` and
// those that report the thread's own faults. 0 or an errno.
int shim_thread_create(pthread_t *_Nonnull thread, int signal, void *_Nullable (*_Nonnull start)(void *_Nullable),
                       void *_Nullable argument);

// Has the kernel give the calling thread the memory for the next 16 KiB of its stack: as much as a call needs that ends
// with an error.
void shim_thread_touch_stack(void);

// Makes the calling thread the one that `target`'s signals are sent to and handled on; null ends that.
void shim_interrupt_attach(struct shim_interrupt_target *_Nullable target);

// Sends `signal` to the target's thread, which must be alive. 0 or an errno (EAGAIN: too many queued signals).
int shim_interrupt_send(struct shim_interrupt_target *_Nonnull target, int signal);

// Asks for the end of the call that is under way on the calling thread; may be called by a signal handler. Whether it
// ends, for whatever reason.
bool shim_interrupt_end_call(int reason);

// Stores 1 into the target's immediate_exit, and clears it: release order, partner of the kernel's read in KVM_RUN.
void shim_immediate_exit_set(struct shim_interrupt_target *_Nonnull target);
void shim_immediate_exit_clear(struct shim_interrupt_target *_Nonnull target);

// A timer that signals the target's thread, the calling one. On CLOCK_MONOTONIC for SHIM_REASON_TIME_LIMIT, on the
// thread's own CPU time for SHIM_REASON_CPU_TIME_LIMIT: its signal asks for the end of the call, for that reason. On
// CLOCK_MONOTONIC for SHIM_REASON_NONE: its signal only has the guest left.
int shim_timer_create(struct shim_interrupt_target *_Nonnull target, int signal, int reason, int32_t *_Nonnull timer);
// Arms it for `nanoseconds` from now (0 disarms), and tells what was left of the time before (0: not armed, or over).
int shim_timer_arm(int32_t timer, uint64_t nanoseconds, uint64_t *_Nullable left);
// Arms it for every `nanoseconds` from now on.
int shim_timer_repeat(int32_t timer, uint64_t nanoseconds);
void shim_timer_delete(int32_t timer);

// futex(2), private. A wait ends by a wake, a signal, a changed word, or after `nanoseconds` (0: never).
void shim_futex_wait(const uint32_t *_Nonnull word, uint32_t expected, uint64_t nanoseconds);
void shim_futex_wake_all(const uint32_t *_Nonnull word);

// Who the calling thread belongs to: a mark to recognise it by, without a system call.
void shim_thread_set_owner(const void *_Nullable owner);
const void *_Nullable shim_thread_owner(void);

// The Swift task that the calling thread runs, to be told from others while it runs; none outside of tasks. What the
// compiler itself calls for `withUnsafeCurrentTask`, which looks up a type's metadata each time as well.
const void *_Nullable shim_current_task(void);

// Whether that task, if there is one, has been cancelled.
bool shim_is_task_cancelled(void);

// The next job that the calling thread gives to this owner's executor goes on with a call that was begun without it;
// null ends that.
void shim_thread_set_continuing(const void *_Nullable owner);
const void *_Nullable shim_thread_continuing(void);

void shim_thread_yield(void);

// How many processors the calling thread and the process's first one may run on; 1 where that is not known.
int shim_processor_count(void);

// Looks at a word until it is not `value` any more, or so many times. What it was last. Without the pauses it would be
// later to find out: a processor that is ahead of itself with looks has to begin again when the word changes.
static inline uint32_t shim_poll(const uint32_t *_Nonnull word, uint32_t value, uint32_t looks) {
    uint32_t found;
    while ((found = __atomic_load_n(word, __ATOMIC_ACQUIRE)) == value && --looks) __builtin_ia32_pause();
    return found;
}

// Copies words one by one: where they were stored a moment ago, wider loads would wait for the stores to be done.
static inline void shim_copy_words(void *_Nonnull to, const void *_Nonnull from, size_t count) {
    const volatile uint64_t *source = (const volatile uint64_t *)from;
    volatile uint64_t *destination = (volatile uint64_t *)to;
    for (size_t index = 0; index < count; index++) destination[index] = source[index];
}

static inline void shim_pause(void) { __builtin_ia32_pause(); }

// The processor's clock, which runs at one rate on all of them where the kernel itself trusts it.
static inline uint64_t shim_ticks(void) { return __builtin_ia32_rdtsc(); }

#endif
