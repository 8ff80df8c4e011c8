#define _GNU_SOURCE
#include "confinement.h"

#include "interrupt.h"
#include "userfault.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

struct errand {
    struct errand *next;
    void (*body)(void *);
    void *context;
    uint32_t *done;  // what the sender sleeps on, if it waits
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t arrival = PTHREAD_COND_INITIALIZER;
static struct errand *first, **last = &first;
static bool is_started;

static void send(struct errand *errand) {
    errand->next = NULL;
    pthread_mutex_lock(&lock);
    *last = errand;
    last = &errand->next;
    pthread_cond_signal(&arrival);
    pthread_mutex_unlock(&lock);
}

static void *run_errands(void *unused) {
    while (true) {
        pthread_mutex_lock(&lock);
        while (!first) pthread_cond_wait(&arrival, &lock);
        struct errand *errand = first;
        first = errand->next;
        if (!first) last = &first;
        pthread_mutex_unlock(&lock);
        uint32_t *done = errand->done;
        errand->body(errand->context);
        if (done) {
            // Released to shim_errand_run. The errand is its sender's, and gone from here on.
            __atomic_store_n(done, 1, __ATOMIC_RELEASE);
            shim_futex_wake_all(done);
        } else {
            free(errand);
        }
    }
    return unused;
}

void shim_errand_run(void (*body)(void *), void *context) {
    if (!shim_thread_is_confined()) return body(context);
    uint32_t done = 0;
    struct errand errand = {.body = body, .context = context, .done = &done};
    send(&errand);
    // Acquiring; partner: run_errands.
    while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) shim_futex_wait(&done, 0, 0);
}

static void post(void (*body)(void *), void *context) {
    struct errand *errand = malloc(sizeof *errand);
    // A task that nobody runs would be awaited for ever.
    if (!errand) abort();
    *errand = (struct errand){.body = body, .context = context};
    send(errand);
}

// ---- The Swift runtime's hooks ---------------------------------------------------------------------------------
// The runtime calls a hook, where one is set, for each task that becomes runnable, with the function that would have
// been called otherwise. What was hooked before is called as if it still were.

#define SWIFT __attribute__((swiftcall))
typedef SWIFT void (*enqueue)(void *job);
typedef SWIFT void (*enqueue_after)(unsigned long long delay, void *job);
typedef SWIFT void (*enqueue_at)(long long seconds, long long nanoseconds, long long tolerance_seconds,
                                 long long tolerance_nanoseconds, int clock, void *job);
typedef SWIFT void (*enqueue_hook)(void *job, enqueue original);
typedef SWIFT void (*enqueue_after_hook)(unsigned long long delay, void *job, enqueue_after original);
typedef SWIFT void (*enqueue_at_hook)(long long seconds, long long nanoseconds, long long tolerance_seconds,
                                      long long tolerance_nanoseconds, int clock, void *job, enqueue_at original);
extern enqueue_hook swift_task_enqueueGlobal_hook, swift_task_enqueueMainExecutor_hook;
extern enqueue_after_hook swift_task_enqueueGlobalWithDelay_hook;
extern enqueue_at_hook swift_task_enqueueGlobalWithDeadline_hook;

static enqueue_hook previous_global, previous_main;
static enqueue_after_hook previous_after;
static enqueue_at_hook previous_at;

// A task on its way to its executor.
struct enqueuing {
    void *job;
    union {
        enqueue plain;
        enqueue_after after;
        enqueue_at at;
    } original;
    unsigned long long delay;
    long long times[4];
    int clock;
};

static SWIFT void pass_global(void *job, enqueue original) {
    if (previous_global) previous_global(job, original);
    else original(job);
}
static SWIFT void pass_main(void *job, enqueue original) {
    if (previous_main) previous_main(job, original);
    else original(job);
}
static SWIFT void pass_after(unsigned long long delay, void *job, enqueue_after original) {
    if (previous_after) previous_after(delay, job, original);
    else original(delay, job);
}
static SWIFT void pass_at(long long s, long long ns, long long ts, long long tns, int clock, void *job,
                          enqueue_at original) {
    if (previous_at) previous_at(s, ns, ts, tns, clock, job, original);
    else original(s, ns, ts, tns, clock, job);
}

static void enqueue_global_later(void *context) {
    struct enqueuing enqueuing = *(struct enqueuing *)context;
    free(context);
    pass_global(enqueuing.job, enqueuing.original.plain);
}
static void enqueue_main_later(void *context) {
    struct enqueuing enqueuing = *(struct enqueuing *)context;
    free(context);
    pass_main(enqueuing.job, enqueuing.original.plain);
}
static void enqueue_after_later(void *context) {
    struct enqueuing enqueuing = *(struct enqueuing *)context;
    free(context);
    pass_after(enqueuing.delay, enqueuing.job, enqueuing.original.after);
}
static void enqueue_at_later(void *context) {
    struct enqueuing enqueuing = *(struct enqueuing *)context;
    free(context);
    pass_at(enqueuing.times[0], enqueuing.times[1], enqueuing.times[2], enqueuing.times[3], enqueuing.clock,
            enqueuing.job, enqueuing.original.at);
}

static _Thread_local bool is_nice;

void shim_thread_make_nice(int increment) {
    // A thread may always be nicer, so this does not fail.
    (void)!nice(increment);
    is_nice = true;
}

// Whether an executor that begins a thread must not do so on this one, because the new one would inherit its filter, or
// its niceness, which only the privileged can take back.
static bool begins_no_threads(void) { return is_nice || shim_thread_is_confined(); }

static void hand_over(void (*body)(void *), struct enqueuing enqueuing) {
    struct enqueuing *copy = malloc(sizeof *copy);
    if (!copy) abort();
    *copy = enqueuing;
    post(body, copy);
}

static SWIFT void hook_global(void *job, enqueue original) {
    if (!begins_no_threads()) return pass_global(job, original);
    hand_over(enqueue_global_later, (struct enqueuing){.job = job, .original.plain = original});
}
static SWIFT void hook_main(void *job, enqueue original) {
    if (!begins_no_threads()) return pass_main(job, original);
    hand_over(enqueue_main_later, (struct enqueuing){.job = job, .original.plain = original});
}
static SWIFT void hook_after(unsigned long long delay, void *job, enqueue_after original) {
    if (!begins_no_threads()) return pass_after(delay, job, original);
    hand_over(enqueue_after_later, (struct enqueuing){.job = job, .original.after = original, .delay = delay});
}
static SWIFT void hook_at(long long s, long long ns, long long ts, long long tns, int clock, void *job,
                          enqueue_at original) {
    if (!begins_no_threads()) return pass_at(s, ns, ts, tns, clock, job, original);
    hand_over(enqueue_at_later, (struct enqueuing){.job = job,
                                                   .original.at = original,
                                                   .times = {s, ns, ts, tns},
                                                   .clock = clock});
}

int shim_errands_start(void) {
    pthread_mutex_lock(&lock);
    int result = 0;
    if (!is_started) {
        pthread_t thread;
        result = shim_helper_thread_create(&thread, "microvm-errands", run_errands, NULL);
        if (!result) {
            is_started = true;
            pthread_detach(thread);
            previous_global = swift_task_enqueueGlobal_hook;
            previous_main = swift_task_enqueueMainExecutor_hook;
            previous_after = swift_task_enqueueGlobalWithDelay_hook;
            previous_at = swift_task_enqueueGlobalWithDeadline_hook;
            swift_task_enqueueGlobal_hook = hook_global;
            swift_task_enqueueMainExecutor_hook = hook_main;
            swift_task_enqueueGlobalWithDelay_hook = hook_after;
            swift_task_enqueueGlobalWithDeadline_hook = hook_at;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}
