// The guest of every benchmark. The raw loops and the library load the same module built from this file.

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

struct span {
    const void *base;
    uint64_t length;
};

// The host function that call_host loops over.
extern uint64_t host_add(uint64_t first, uint64_t second);

// guest_call, guest_call_hop, hot_guest_call and cold_start.
EXPORT uint64_t add(uint64_t first, uint64_t second) {
    return first + second;
}

// host_call: `count` round trips, each depending on the one before.
EXPORT uint64_t call_host(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t turn = 0; turn < count; turn++) {
        sum = host_add(sum, turn);
    }
    return sum;
}

// call_24k_in_8k_out and hot_call_24k_in_8k_out: folds the input's three thirds into one, word by word:
// folded[i] = input[i] ^ (input[i + third] + input[i + 2 * third]).
// At most 24 KiB, in whole words; what is beyond is not looked at.
EXPORT struct span fold(const uint8_t *bytes, uint64_t length) {
    static uint64_t folded[1024];
    const uint64_t *input = (const uint64_t *)bytes;
    uint64_t third = length / (3 * sizeof(uint64_t));
    if (third > 1024) {
        third = 1024;
    }
    for (uint64_t word = 0; word < third; word++) {
        folded[word] = input[word] ^ (input[word + third] + input[word + 2 * third]);
    }
    return (struct span){folded, third * sizeof(uint64_t)};
}

// restore_N_pages and the like: one word in each of `count` pages from `base` on.
EXPORT void write_pages(uint64_t base, uint64_t count) {
    static uint64_t turn;
    turn++;
    for (uint64_t page = 0; page < count; page++) {
        *(volatile uint64_t *)(base + page * 4096) = turn;
    }
}

// lazy_page: a word of each of `count` pages, added up.
EXPORT uint64_t read_pages(uint64_t base, uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t page = 0; page < count; page++) {
        sum += *(volatile uint64_t *)(base + page * 4096);
    }
    return sum;
}

// Where the pages may lie in the library's guest; plain C has a place of its own.
extern struct span microvm_heap(void) __attribute__((weak));
EXPORT uint64_t heap_base(void) {
    return (uint64_t)microvm_heap().base;
}

// kill_latency: never returns.
EXPORT void spin(void) {
    for (;;) {
        __asm__ volatile("");
    }
}

// stop_latency and continue_latency: where count_up counts, for the host to look at.
static volatile uint64_t counter;

EXPORT uint64_t counter_address(void) {
    return (uint64_t)&counter;
}

// Never returns.
EXPORT void count_up(void) {
    for (;;) {
        counter++;
    }
}

// hot_host_call: one round trip.
EXPORT uint64_t call_host_once(uint64_t first, uint64_t second) {
    return host_add(first, second);
}
