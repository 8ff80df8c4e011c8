// Guest calls without an exit, as one would make them by hand: both sides poll.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "RawMachine.h"
#include "Watch.h"

extern const uint8_t raw_hot[], raw_hot_thunk[];

// Before the first sample, so that the guest has been entered and its memory is in the processors' caches.
#define WARM_UP_CALLS (16 * RAW_HOT_CALLS)

int raw_hot_machine_create(const raw_module *module, raw_machine **result) {
    return raw_machine_create_with(module, raw_hot_thunk, result);
}

// MARK: The guest's thread

static int poll_in_guest(struct job *job) {
    *word(job->machine, RAW_MAILBOX + RAW_FUNCTION) = raw_guest_address(raw_hot);
    return enter(job->machine, RAW_RETURN_PORT) ? 0 : EPROTO;
}

// MARK: The calling thread

static volatile uint64_t *hot(raw_machine *machine, uint64_t offset) {
    return word(machine, RAW_HOT_MAILBOX + offset);
}

static uint32_t *turn(raw_machine *machine) {
    return (uint32_t *)(machine->memory + RAW_HOT_MAILBOX + RAW_HOT_TURN);
}

static void give_turn(raw_machine *machine, uint32_t to) {
    __atomic_store_n(turn(machine), to, __ATOMIC_RELEASE);
}

// Polls until it is the host's turn, and says for what: RAW_HOT_GUEST if it is not within some seconds, as after an
// exit that was not expected.
static uint32_t await_guest(raw_machine *machine) {
    for (uint64_t looks = 0; looks < 20 * WATCH_LOOKS; looks++) {
        uint32_t now = __atomic_load_n(turn(machine), __ATOMIC_ACQUIRE);
        if (now != RAW_HOT_GUEST) {
            return now;
        }
        __builtin_ia32_pause();
    }
    return RAW_HOT_GUEST;
}

static void request(raw_machine *machine, uint64_t function, uint64_t first, uint64_t second) {
    *hot(machine, RAW_HOT_FUNCTION) = function;
    *hot(machine, RAW_HOT_FIRST) = first;
    *hot(machine, RAW_HOT_SECOND) = second;
    give_turn(machine, RAW_HOT_GUEST);
}

static bool add(raw_machine *machine, uint64_t first, uint64_t second) {
    request(machine, machine->module->add, first, second);
    return await_guest(machine) == RAW_HOT_IDLE && *hot(machine, RAW_HOT_RESULT) == first + second;
}

static bool call_host(raw_machine *machine, uint64_t first, uint64_t second) {
    request(machine, machine->module->call_host_once, first, second);
    if (await_guest(machine) != RAW_HOT_HOST_CALL) {
        return false;
    }
    *hot(machine, RAW_HOT_RESULT) = *hot(machine, RAW_HOT_FIRST) + *hot(machine, RAW_HOT_SECOND);
    give_turn(machine, RAW_HOT_GUEST);
    return await_guest(machine) == RAW_HOT_IDLE && *hot(machine, RAW_HOT_RESULT) == first + second;
}

static bool take_call_samples(raw_machine *machine, bool (*call)(raw_machine *, uint64_t, uint64_t),
                              uint64_t *samples, size_t count) {
    bool right = true;
    for (uint64_t i = 0; right && i < WARM_UP_CALLS; i++) {
        right = call(machine, i, 42);
    }
    for (size_t i = 0; right && i < count; i++) {
        uint64_t start = now();
        for (uint64_t j = 0; right && j < RAW_HOT_CALLS; j++) {
            right = call(machine, j, 42);
        }
        samples[i] = (now() - start) / RAW_HOT_CALLS;
    }
    return right;
}

static bool take_guest_call_samples(raw_machine *machine, uint64_t *samples, size_t count) {
    return take_call_samples(machine, add, samples, count);
}

static bool take_host_call_samples(raw_machine *machine, uint64_t *samples, size_t count) {
    return take_call_samples(machine, call_host, samples, count);
}

// A copy of what `fold` returned, or NULL.
static uint64_t *fold(raw_machine *machine, const uint8_t *input) {
    memcpy(machine->memory + RAW_ARENA, input, FOLD_INPUT);
    request(machine, machine->module->fold, RAW_ARENA, FOLD_INPUT);
    uint32_t outcome = await_guest(machine);
    uint64_t base = *hot(machine, RAW_HOT_RESULT);
    uint64_t length = *hot(machine, RAW_HOT_RESULT_LENGTH);
    if (outcome != RAW_HOT_IDLE || length != FOLD_OUTPUT || base > RAW_MEMORY_SIZE - FOLD_OUTPUT) {
        return NULL;
    }
    uint64_t *output = malloc(length);
    return output == NULL ? NULL : memcpy(output, machine->memory + base, length);
}

static bool take_fold_samples(raw_machine *machine, uint64_t *samples, size_t count) {
    const uint8_t *input = raw_fold_input();
    bool right = true;
    for (uint64_t i = 0; right && i < WARM_UP_CALLS; i++) {
        right = add(machine, i, 42);
    }
    // The first is no sample, because it finds the memory cold.
    for (size_t i = 0; right && i <= count; i++) {
        uint64_t start = now();
        uint64_t *output = fold(machine, input);
        uint64_t end = now();
        right = output != NULL && raw_fold_is_right(input, output);
        free(output);
        if (i > 0) {
            samples[i - 1] = end - start;
        }
    }
    return right;
}

static int run(raw_machine *machine, bool (*body)(raw_machine *, uint64_t *, size_t), uint64_t *samples,
               size_t count) {
    // A guest of the other side may still poll on the processor that this one is about to take.
    watch_pause();
    give_turn(machine, RAW_HOT_IDLE);
    struct job job = {.body = poll_in_guest, .machine = machine};
    int error = raw_begin(&job);
    if (error != 0) {
        return error;
    }
    bool right = body(machine, samples, count);
    give_turn(machine, RAW_HOT_LEAVE);
    error = raw_finish();
    return error == 0 && !right ? EPROTO : error;
}

int raw_hot_guest_call(raw_machine *machine, uint64_t *samples, size_t count) {
    return run(machine, take_guest_call_samples, samples, count);
}

int raw_hot_host_call(raw_machine *machine, uint64_t *samples, size_t count) {
    return run(machine, take_host_call_samples, samples, count);
}

int raw_hot_fold_call(raw_machine *machine, uint64_t *samples, size_t count) {
    return run(machine, take_fold_samples, samples, count);
}
