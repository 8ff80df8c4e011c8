// As many machines alive at once as samples.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "RawLoops.h"
#include "RawMachine.h"

struct sleeper {
    pthread_t thread;
    sem_t end;
    bool runs;
};

static void *sleep_until_end(void *sleeper) {
    while (sem_wait(&((struct sleeper *)sleeper)->end) < 0 && errno == EINTR) {
    }
    return NULL;
}

static int begin_sleeper(struct sleeper *sleeper) {
    sem_init(&sleeper->end, 0, 0);
    int error = pthread_create(&sleeper->thread, NULL, sleep_until_end, sleeper);
    sleeper->runs = error == 0;
    return error;
}

static int many(struct job *job) {
    raw_machine *machines = calloc(job->count, sizeof *machines);
    struct sleeper *sleepers = calloc(job->count, sizeof *sleepers);
    int error = machines == NULL || sleepers == NULL ? ENOMEM : 0;
    size_t made = 0;
    while (error == 0 && made < job->count) {
        uint64_t start = now();
        error = raw_create(job->module, false, RAW_MEMORY_SIZE, -1, &machines[made]);
        if (error == 0 && job->with_threads) {
            error = begin_sleeper(&sleepers[made]);
        }
        if (error == 0 && !call_add(&machines[made], made, 42)) {
            error = EPROTO;
        }
        job->samples[made] = now() - start;
        made++;
    }
    for (size_t i = 0; i < made; i++) {
        if (sleepers[i].runs) {
            sem_post(&sleepers[i].end);
            pthread_join(sleepers[i].thread, NULL);
        }
        raw_destroy(&machines[i]);
    }
    free(sleepers);
    free(machines);
    return error;
}

int raw_thousand(const raw_module *module, bool with_threads, uint64_t *samples, size_t count) {
    return raw_perform((struct job){
        .body = many, .module = module, .with_threads = with_threads, .samples = samples, .count = count});
}
