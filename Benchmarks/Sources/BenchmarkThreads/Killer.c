#include "Killer.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

struct killer {
    pthread_t thread;
    sem_t ordered, finished;
    kill_outcome (*kill)(void *context);
    void *context;
    // Relaxed: the semaphore publishes it, and a killer that tries in vain sees it some time.
    atomic_bool ending;
    uint64_t began;
};

static void await(sem_t *semaphore) {
    while (sem_wait(semaphore) < 0 && errno == EINTR) {
    }
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void *serve(void *argument) {
    killer *killer = argument;
    for (;;) {
        await(&killer->ordered);
        kill_outcome outcome = KILL_TOO_EARLY;
        while (outcome == KILL_TOO_EARLY) {
            if (atomic_load_explicit(&killer->ending, memory_order_relaxed)) {
                return NULL;
            }
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
            killer->began = now();
            outcome = killer->kill(killer->context);
        }
        if (outcome != KILL_IN_GUEST) {
            killer->began = 0;
        }
        sem_post(&killer->finished);
    }
}

int killer_create(killer **result) {
    killer *killer = calloc(1, sizeof(*killer));
    if (killer == NULL) {
        return ENOMEM;
    }
    sem_init(&killer->ordered, 0, 0);
    sem_init(&killer->finished, 0, 0);
    int error = pthread_create(&killer->thread, NULL, serve, killer);
    if (error != 0) {
        free(killer);
        return error;
    }
    *result = killer;
    return 0;
}

void killer_destroy(killer *killer) {
    atomic_store_explicit(&killer->ending, true, memory_order_relaxed);
    sem_post(&killer->ordered);
    pthread_join(killer->thread, NULL);
    free(killer);
}

void killer_order(killer *killer, kill_outcome (*kill)(void *context), void *context) {
    killer->kill = kill;
    killer->context = context;
    sem_post(&killer->ordered);
}

uint64_t killer_finish(killer *killer) {
    await(&killer->finished);
    return killer->began;
}
