// Plain C's machine, for all the loops that run it.
#ifndef RAW_MACHINE_H
#define RAW_MACHINE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <time.h>

#include "Killer.h"
#include "RawLayout.h"
#include "RawLoops.h"
#include "RawModule.h"

struct raw_machine {
    const raw_module *module;
    int machine;
    int processor;
    uint8_t *memory;
    uint64_t memory_size;
    struct kvm_run *run;
    // Where the guest counts, once that has been asked for.
    uint64_t counter;
};

static inline uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static inline volatile uint64_t *word(raw_machine *machine, uint64_t address) {
    return (volatile uint64_t *)(machine->memory + address);
}

// Whether KVM_RUN came back from an `out` to `port`.
static inline bool enter(raw_machine *machine, uint16_t port) {
    return ioctl(machine->processor, KVM_RUN, 0) == 0 && machine->run->exit_reason == KVM_EXIT_IO &&
           machine->run->io.port == port;
}

static inline bool call_add(raw_machine *machine, uint64_t first, uint64_t second) {
    *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->add;
    *word(machine, RAW_MAILBOX + RAW_FIRST) = first;
    *word(machine, RAW_MAILBOX + RAW_SECOND) = second;
    return enter(machine, RAW_RETURN_PORT) && *word(machine, RAW_MAILBOX + RAW_RESULT) == first + second;
}

// Makes a machine with `size` bytes of memory, a multiple of RAW_MEMORY_SIZE: new, or private to it from an image that
// another one's memory was written to, unless that is -1. After an error too it has to be destroyed.
int raw_create(const raw_module *module, bool with_cpuid, uint64_t size, int image, raw_machine *machine);
void raw_destroy(raw_machine *machine);

// Makes `thunk`, one of RawGuest.S, what the module's import calls in that memory.
void raw_link(const raw_module *module, uint8_t *memory, const uint8_t *thunk);

// Where the guest has what is at `code` in RawGuest.S.
extern const uint8_t raw_trampoline[];
static inline uint64_t raw_guest_address(const uint8_t *code) {
    return RAW_TRAMPOLINE + (uint64_t)(code - raw_trampoline);
}

// What `fold` is given, FOLD_INPUT bytes, and whether what it returned is right, FOLD_OUTPUT bytes.
#define FOLD_INPUT 24576
#define FOLD_OUTPUT 8192
const uint8_t *raw_fold_input(void);
bool raw_fold_is_right(const uint8_t *input, const uint64_t *output);

// Something to be done on the virtual CPUs' thread.
struct job {
    int (*body)(struct job *job);
    const raw_module *module;
    raw_machine *machine;
    killer *killer;
    bool with_cpuid;
    bool with_threads;
    // What the module's import is to call in a new machine, or NULL.
    const uint8_t *thunk;
    // For those that write pages.
    size_t pages;
    uint64_t *samples;
    size_t count;
};

int raw_perform(struct job job);

// Makes a machine for samplers, on the virtual CPUs' thread. 0 or an errno.
int raw_machine_create_with(const raw_module *module, const uint8_t *thunk, raw_machine **machine);

// The same in two steps, for those who work together with the job's thread. What has begun without an error has to be
// finished.
int raw_begin(struct job *job);
int raw_finish(void);

#endif
