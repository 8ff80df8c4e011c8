#define _GNU_SOURCE
#include "Placement.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

static pthread_once_t allowed_once = PTHREAD_ONCE_INIT;
static int allowed_error;
// Where the process may run: all of it, the first processor, and the second or else the first again.
static cpu_set_t allowed, first, second;

// Released by whoever begins or ends a placement, acquired by those who adopt it.
static _Atomic(const cpu_set_t *) guest;

static void find_allowed(void) {
    if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0) {
        allowed_error = errno;
        return;
    }
    int found = 0;
    for (int processor = 0; processor < CPU_SETSIZE && found < 2; processor++) {
        if (CPU_ISSET(processor, &allowed)) {
            cpu_set_t *place = found++ == 0 ? &first : &second;
            CPU_SET(processor, place);
        }
    }
    if (found == 1) {
        second = first;
    }
}

// Confines every thread there is, until a pass finds none that a thread has started meanwhile where it was itself.
static int confine_all(const cpu_set_t *place) {
    int error = 0;
    bool changed = true;
    while (error == 0 && changed) {
        changed = false;
        DIR *threads = opendir("/proc/self/task");
        if (threads == NULL) {
            return errno;
        }
        for (struct dirent *entry = readdir(threads); entry != NULL; entry = readdir(threads)) {
            pid_t thread = atoi(entry->d_name);
            cpu_set_t present;
            // The directory's own two entries are no numbers; and a thread may come to its end at any time.
            if (thread == 0 || sched_getaffinity(thread, sizeof(present), &present) < 0 || CPU_EQUAL(&present, place)) {
                continue;
            }
            if (sched_setaffinity(thread, sizeof(*place), place) == 0) {
                changed = true;
            } else if (errno != ESRCH && errno != EPERM) {
                // Neither gone by now, nor KVM's own, which only a process with capabilities may move.
                error = errno;
            }
        }
        closedir(threads);
    }
    return error;
}

bool placement_has_two_processors(void) {
    pthread_once(&allowed_once, find_allowed);
    return !CPU_EQUAL(&first, &second);
}

int placement_begin(bool two_processors) {
    pthread_once(&allowed_once, find_allowed);
    if (allowed_error != 0) {
        return allowed_error;
    }
    atomic_store_explicit(&guest, two_processors ? &second : &first, memory_order_release);
    return confine_all(&first);
}

int placement_end(void) {
    pthread_once(&allowed_once, find_allowed);
    atomic_store_explicit(&guest, NULL, memory_order_release);
    return allowed_error != 0 ? allowed_error : confine_all(&allowed);
}

int placement_adopt_guest(void) {
    const cpu_set_t *place = atomic_load_explicit(&guest, memory_order_acquire);
    // On the first one are all threads anyway, and a virtual CPU's thread that is confined may not even ask.
    return place != NULL && place != &first && sched_setaffinity(0, sizeof(*place), place) < 0 ? errno : 0;
}

void placement_leave_guest(pthread_t thread) {
    const cpu_set_t *place = atomic_load_explicit(&guest, memory_order_acquire);
    if (place != NULL) {
        pthread_setaffinity_np(thread, sizeof(first), &first);
    }
}
