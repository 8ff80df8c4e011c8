#define _GNU_SOURCE
#include "interrupt.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// The handler's only way to the target. Written by the thread itself, before its first signal can arrive.
static _Thread_local struct shim_interrupt_target *current_target;

static _Thread_local const void *thread_owner;

static struct sigaction previous_handlers[_NSIG];
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed[_NSIG];

int shim_signal_minimum(void) { return SIGRTMIN; }
int shim_signal_maximum(void) { return SIGRTMAX; }

static void chain(int signal, siginfo_t *information, void *context) {
    const struct sigaction *previous = &previous_handlers[signal];
    if (previous->sa_flags & SA_SIGINFO) {
        if (previous->sa_sigaction) previous->sa_sigaction(signal, information, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(signal);
    }
}

// The call under way shall end, unless somebody else has said so already or there is nothing left to end. The timer
// was armed for this very call: it is disarmed before the call ends, and its signal is the thread's own. Whether the
// call ends, for whatever reason.
static bool end_call(struct shim_interrupt_target *target, uint64_t reason) {
    uint64_t state = __atomic_load_n(&target->state, __ATOMIC_RELAXED);
    do {
        if (!(state & SHIM_STATE_IN_CALL) || state & SHIM_STATE_DECIDED) return false;
        if (state & SHIM_STATE_CANCEL) return true;
        // model: timer_request. Partner of every other read-modify-write of the word.
    } while (!__atomic_compare_exchange_n(&target->state, &state,
                                          state | SHIM_STATE_CANCEL | reason << SHIM_STATE_REASON_SHIFT, false,
                                          __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    // A wait that the signal interrupts is begun again by the kernel, which then finds the word changed.
    __atomic_add_fetch(&target->attention, 1, __ATOMIC_RELEASE);
    return true;
}

bool shim_interrupt_end_call(int reason) {
    struct shim_interrupt_target *target = current_target;
    return target && end_call(target, (uint64_t)reason);
}

// A signal is the library's own if its value points into the thread's own target, which nobody else sends: to its
// beginning for a kick, behind it by a reason's number for a timer.
static void handle(int signal, siginfo_t *information, void *context) {
    int saved_errno = errno;
    struct shim_interrupt_target *target = current_target;
    uintptr_t mark = (uintptr_t)information->si_value.sival_ptr - (uintptr_t)target;
    bool is_kick = information->si_code == SI_QUEUE && mark == 0;
    bool is_timer = information->si_code == SI_TIMER &&
                    (mark == SHIM_REASON_TIME_LIMIT || mark == SHIM_REASON_CPU_TIME_LIMIT ||
                     mark == SHIM_REASON_NONE);
    if (target && (is_kick || is_timer)) {
        // The flag first: a loop that finds immediate_exit set must find out why.
        if (is_timer && mark != SHIM_REASON_NONE) end_call(target, mark);
        // model: handler_store
        shim_immediate_exit_set(target);
    } else {
        chain(signal, information, context);
    }
    errno = saved_errno;
}

int shim_interrupt_install(int signal) {
    if (signal < SIGRTMIN || signal > SIGRTMAX) return EINVAL;
    int result = 0;
    pthread_mutex_lock(&install_lock);
    if (!installed[signal]) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
        sigfillset(&action.sa_mask);
        // Read before it is replaced: the handler may run, and chain, as soon as it is installed.
        if (sigaction(signal, NULL, &previous_handlers[signal]) || sigaction(signal, &action, NULL)) {
            result = errno;
        } else {
            installed[signal] = true;
        }
    }
    pthread_mutex_unlock(&install_lock);
    return result;
}

// Linux 6.13.
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static pthread_once_t guards_once = PTHREAD_ONCE_INIT;
static bool has_guards;

static void look_for_guards(void) {
    long size = sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return;
    has_guards = !madvise(page, (size_t)size, MADV_GUARD_INSTALL);
    munmap(page, (size_t)size);
}

// What a new thread needs to know before it is the caller's.
struct thread_start {
    void *(*start)(void *);
    void *argument;
    // Of the guard that the thread gives its own stack; 0 where it has one.
    size_t guard_size;
    cpu_set_t processors;
    bool has_processors;
};

// The lowest address of the calling thread's stack, or NULL.
static void *stack_end(void) {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes)) return NULL;
    void *end = NULL;
    size_t size;
    if (pthread_attr_getstack(&attributes, &end, &size)) end = NULL;
    pthread_attr_destroy(&attributes);
    return end;
}

static void *begin_thread(void *argument) {
    struct thread_start start = *(struct thread_start *)argument;
    free(argument);
    void *guard = start.guard_size ? stack_end() : NULL;
    // It fails where the C library gives a stack once more that has had its own kind of guard, which is as good then.
    if (guard && madvise(guard, start.guard_size, MADV_GUARD_INSTALL)) mprotect(guard, start.guard_size, PROT_NONE);
    if (start.has_processors) sched_setaffinity(0, sizeof start.processors, &start.processors);
    // By the thread itself this is one cheap system call; by its creator it would be three on a file.
    prctl(PR_SET_NAME, "microvm-vcpu");
    void *result = start.start(start.argument);
    // The stack may become another thread's, which is to have all of it.
    if (guard) madvise(guard, start.guard_size, MADV_GUARD_REMOVE);
    return result;
}

// A thread begins on its creator's processor, and may then go where the creator may. Left to itself the kernel puts it
// on an idle one, where it stays: and each call would have to wake that processor first, and each return the other. The
// creator confines itself while it makes the thread, which inherits that: cheaper than the C library's attribute, for
// which the new thread has to wait.
static int create_here(pthread_t *thread, pthread_attr_t *attributes, struct thread_start *start) {
    cpu_set_t processors;
    CPU_ZERO(&processors);
    int here = sched_getcpu();
    bool confined = false;
    if (here >= 0 && here < CPU_SETSIZE && !sched_getaffinity(0, sizeof processors, &processors)) {
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(here, &only);
        confined = !sched_setaffinity(0, sizeof only, &only);
    }
    start->has_processors = confined;
    start->processors = processors;
    int result = pthread_create(thread, attributes, begin_thread, start);
    if (confined) sched_setaffinity(0, sizeof processors, &processors);
    return result;
}

void shim_own_thread_mask(sigset_t *mask) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS};
    sigfillset(mask);
    for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(mask, faults[i]);
}

int shim_thread_create(pthread_t *thread, int signal, void *(*start)(void *), void *argument) {
    sigset_t mask;
    shim_own_thread_mask(&mask);
    sigdelset(&mask, signal);
    struct thread_start *block = malloc(sizeof *block);
    if (!block) return ENOMEM;
    *block = (struct thread_start){.start = start, .argument = argument};
    pthread_attr_t attributes;
    int result = pthread_attr_init(&attributes);
    if (!result) {
        result = pthread_attr_setsigmask_np(&attributes, &mask);
        if (!result) result = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        // The C library's guard splits the stack's mapping, and every virtual machine of the process is told of that;
        // and all mappings there are cost time whenever one is made.
        pthread_once(&guards_once, look_for_guards);
        if (!result && has_guards) {
            result = pthread_attr_getguardsize(&attributes, &block->guard_size);
            if (!result) result = pthread_attr_setguardsize(&attributes, 0);
        }
        if (!result) result = create_here(thread, &attributes, block);
        pthread_attr_destroy(&attributes);
    }
    if (result) free(block);
    return result;
}

__attribute__((noinline)) void shim_thread_touch_stack(void) {
    enum { SIZE = 16 << 10, PAGE = 4 << 10 };
    char stack[SIZE];
    // From the top, as calls would.
    for (size_t i = SIZE; i > 0; i -= PAGE) stack[i - 1] = 0;
    // Or the compiler would find that nobody reads it.
    __asm__ volatile("" : : "r"(stack) : "memory");
}

void shim_interrupt_attach(struct shim_interrupt_target *target) {
    struct shim_interrupt_target *previous = current_target;
    if (previous) __atomic_store_n(&previous->thread, 0, __ATOMIC_RELEASE);
    current_target = target;
    // Release: whoever reads the thread's number may signal it, and the handler then finds the target.
    if (target) __atomic_store_n(&target->thread, (int32_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
}

int shim_interrupt_send(struct shim_interrupt_target *target, int signal) {
    pid_t thread = __atomic_load_n(&target->thread, __ATOMIC_ACQUIRE);
    if (!thread) return ESRCH;
    // Asked each time: in a child of fork(2) the thread is not there, and the parent's is not to be signalled.
    pid_t process = getpid();
    siginfo_t information;
    memset(&information, 0, sizeof information);
    information.si_signo = signal;
    information.si_code = SI_QUEUE;
    information.si_pid = process;
    information.si_value.sival_ptr = target;
    return syscall(SYS_rt_tgsigqueueinfo, process, thread, signal, &information) ? errno : 0;
}

void shim_immediate_exit_set(struct shim_interrupt_target *target) {
    uint8_t *byte = __atomic_load_n(&target->immediate_exit, __ATOMIC_ACQUIRE);
    if (byte) __atomic_store_n(byte, 1, __ATOMIC_SEQ_CST);
}

void shim_immediate_exit_clear(struct shim_interrupt_target *target) {
    uint8_t *byte = __atomic_load_n(&target->immediate_exit, __ATOMIC_ACQUIRE);
    if (byte) __atomic_store_n(byte, 0, __ATOMIC_SEQ_CST);
}

// The C library's timer_create wraps the kernel's for SIGEV_THREAD; the kernel's own takes a thread's number.
int shim_timer_create(struct shim_interrupt_target *target, int signal, int reason, int32_t *timer) {
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = (char *)target + reason;
    event._sigev_un._tid = (int32_t)syscall(SYS_gettid);
    clockid_t clock = reason == SHIM_REASON_CPU_TIME_LIMIT ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    return syscall(SYS_timer_create, clock, &event, timer) ? errno : 0;
}

// The thread sanitizer keeps a signal back until the thread's next call of the C library: one that comes just before
// KVM_RUN would not be handled before the guest is left, and one that finds the thread asleep would only have it sleep
// on. So there a timer repeats itself, as killers do, and a sleeper looks around now and then.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define REPEAT_NANOSECONDS 1000000
#define LONGEST_SLEEP_NANOSECONDS 5000000
#endif
#endif
#ifndef REPEAT_NANOSECONDS
#define REPEAT_NANOSECONDS 0
#define LONGEST_SLEEP_NANOSECONDS 0
#endif

int shim_timer_arm(int32_t timer, uint64_t nanoseconds, uint64_t *left) {
    struct itimerspec time = {{0, REPEAT_NANOSECONDS},
                              {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)}};
    struct itimerspec before = {{0, 0}, {0, 0}};
    if (syscall(SYS_timer_settime, timer, 0, &time, &before)) return errno;
    if (left) *left = (uint64_t)before.it_value.tv_sec * 1000000000 + (uint64_t)before.it_value.tv_nsec;
    return 0;
}

int shim_timer_repeat(int32_t timer, uint64_t nanoseconds) {
    struct timespec period = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    struct itimerspec time = {period, period};
    return syscall(SYS_timer_settime, timer, 0, &time, NULL) ? errno : 0;
}

void shim_timer_delete(int32_t timer) { syscall(SYS_timer_delete, timer); }

void shim_futex_wait(const uint32_t *word, uint32_t expected, uint64_t nanoseconds) {
    const uint64_t longest = LONGEST_SLEEP_NANOSECONDS;
    if (longest && (!nanoseconds || nanoseconds > longest)) nanoseconds = longest;
    struct timespec time = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nanoseconds ? &time : NULL);
}

void shim_futex_wake_all(const uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX); }

void shim_thread_set_owner(const void *owner) { thread_owner = owner; }
const void *shim_thread_owner(void) { return thread_owner; }

// In the Swift runtime.
extern void *swift_task_getCurrent(void) __attribute__((swiftcall));
const void *shim_current_task(void) { return swift_task_getCurrent(); }

extern bool swift_task_isCancelled(const void *task) __attribute__((swiftcall));
bool shim_is_task_cancelled(void) {
    const void *task = swift_task_getCurrent();
    return task && swift_task_isCancelled(task);
}

static _Thread_local const void *thread_continuing;
void shim_thread_set_continuing(const void *owner) { thread_continuing = owner; }
const void *shim_thread_continuing(void) { return thread_continuing; }

void shim_thread_yield(void) { sched_yield(); }

int shim_processor_count(void) {
    cpu_set_t own, others;
    if (sched_getaffinity(0, sizeof own, &own) || sched_getaffinity(getpid(), sizeof others, &others)) return 1;
    CPU_OR(&own, &own, &others);
    return CPU_COUNT(&own);
}
