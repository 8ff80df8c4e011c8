/* pthread for a world with one thread: locks are always free, and no second thread can be made. Libraries that can do
 * without threads then do. */
#include "runtime.h"

enum { try_again = 11 /* EAGAIN */ };

int pthread_create(void *thread, const void *attributes, void *(*start)(void *), void *argument) {
    return (void)thread, (void)attributes, (void)start, (void)argument, try_again;
}
int pthread_join(unsigned long thread, void **result) { return (void)thread, (void)result, EINVAL; }
unsigned long pthread_self(void) { return 1; }
int pthread_once(int *once, void (*function)(void)) {
    if (!*once) {
        *once = 1;
        function();
    }
    return 0;
}

int pthread_mutex_init(void *mutex, const void *attributes) { return (void)mutex, (void)attributes, 0; }
int pthread_mutex_destroy(void *mutex) { return (void)mutex, 0; }
int pthread_mutex_lock(void *mutex) { return (void)mutex, 0; }
int pthread_mutex_trylock(void *mutex) { return (void)mutex, 0; }
int pthread_mutex_unlock(void *mutex) { return (void)mutex, 0; }
int pthread_cond_init(void *condition, const void *attributes) { return (void)condition, (void)attributes, 0; }
int pthread_condattr_init(void *attributes) { return (void)attributes, 0; }
int pthread_condattr_destroy(void *attributes) { return (void)attributes, 0; }
int pthread_condattr_setclock(void *attributes, int clock) { return (void)attributes, (void)clock, 0; }
int pthread_cond_destroy(void *condition) { return (void)condition, 0; }
int pthread_cond_signal(void *condition) { return (void)condition, 0; }
int pthread_cond_broadcast(void *condition) { return (void)condition, 0; }
int pthread_cond_wait(void *condition, void *mutex) {
    (void)condition, (void)mutex;
    runtime_abort("pthread_cond_wait: there is no second thread to wait for");
}
int pthread_cond_timedwait(void *condition, void *mutex, const void *until) {
    enum { timed_out = 110 /* ETIMEDOUT */ };
    return (void)condition, (void)mutex, (void)until, timed_out;
}
__attribute__((noreturn)) void pthread_exit(void *result) {
    (void)result;
    runtime_abort("pthread_exit: this is the only thread");
}
