/* Calls from the guest to the host: every type of argument and result, in loops and nested in each other. */
#include "microvm.h"

/* Imports: functions that the host has to offer. */
int64_t host_add(int64_t left, int64_t right);
void host_log(const char *text, size_t length);
struct microvm_span host_concatenate(const char *left, size_t left_length, const char *right, size_t right_length);
int64_t host_fill(uint8_t *bytes, size_t length); /* fills guest memory through the pointer, returns how much */
void host_tick(void);
double host_scale(double value, float factor);
int64_t host_sum_of_nine(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h,
                         int64_t i);
double host_mix(int8_t a, float b, uint16_t c, double d, bool e, int64_t f, uint8_t g, int32_t h, int64_t i, int16_t j);
int8_t host_negate_i8(int8_t value);
bool host_not(bool value);
uint64_t host_pointer(void *pointer, uint64_t length); /* whatever the host makes of a pointer */
int64_t host_descend(int64_t depth);                   /* the host calls `descend` with this depth */
__attribute__((weak)) int64_t host_optional(int64_t value);

int64_t call_add(int64_t left, int64_t right) { return host_add(left, right); }
void call_log(const char *text, size_t length) { host_log(text, length); }
void call_tick(void) { host_tick(); }
double call_scale(double value, float factor) { return host_scale(value, factor); }
int8_t call_negate_i8(int8_t value) { return host_negate_i8(value); }
bool call_not(bool value) { return host_not(value); }
uint64_t call_pointer(uint64_t address, uint64_t length) { return host_pointer((void *)address, length); }
void call_log_at(uint64_t address, uint64_t length) { host_log((const char *)address, length); }

struct microvm_span call_concatenate(const char *left, size_t left_length, const char *right, size_t right_length) {
    return host_concatenate(left, left_length, right, right_length);
}

/* A result of the host is valid until the next host call, so the first is copied before the second is asked for. */
struct microvm_span call_concatenate_twice(const char *text, size_t length) {
    static char copy[4096];
    struct microvm_span once = host_concatenate(text, length, "-", 1);
    if (once.length > sizeof copy)
        return (struct microvm_span){copy, 0};
    once.base = memcpy(copy, once.base, once.length);
    struct microvm_span again = host_concatenate(once.base, once.length, text, length);
    return host_concatenate(once.base, once.length, again.base, again.length);
}

struct microvm_span call_fill(size_t length) {
    static uint8_t buffer[65536];
    int64_t filled = host_fill(buffer, length < sizeof buffer ? length : sizeof buffer);
    return (struct microvm_span){buffer, filled < 0 ? 0 : (size_t)filled};
}

int64_t call_sum_of_nine(int64_t from) {
    return host_sum_of_nine(from, from + 1, from + 2, from + 3, from + 4, from + 5, from + 6, from + 7, from + 8);
}

double call_mix(void) { return host_mix(-1, 2.5f, 3, 4.25, true, -6, 7, -8, 9, -10); }

/* Calls host_add `count` times and returns the last sum: 0 + 1 + 2 ... */
int64_t add_in_a_loop(int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum = host_add(sum, i);
    return sum;
}

void tick_in_a_loop(int64_t count) {
    for (int64_t i = 0; i < count; i++)
        host_tick();
}

/* Values that the ABI lets a function keep over a call: in callee-saved registers and on the stack. Returns 0 when the
 * host call changed none. */
int64_t registers_kept_over_call(void) {
    int64_t changed;
    __asm__ volatile(
        "leaq -128(%%rsp), %%rsp\n\t" /* past the red zone */
        "pushq %%rbx\n\tpushq %%rbp\n\tpushq %%r12\n\tpushq %%r13\n\tpushq %%r14\n\tpushq %%r15\n\t"
        "movq %%rsp, %%r15\n\tandq $-16, %%rsp\n\t"
        "movl $0x11, %%ebx\n\tmovl $0x22, %%ebp\n\tmovl $0x33, %%r12d\n\tmovl $0x44, %%r13d\n\tmovl $0x55, %%r14d\n\t"
        "call host_tick@PLT\n\t"
        "movq %%r15, %%rsp\n\t"
        "subq $0x11, %%rbx\n\tsubq $0x22, %%rbp\n\tsubq $0x33, %%r12\n\tsubq $0x44, %%r13\n\tsubq $0x55, %%r14\n\t"
        "movq %%rbx, %%rax\n\torq %%rbp, %%rax\n\torq %%r12, %%rax\n\torq %%r13, %%rax\n\torq %%r14, %%rax\n\t"
        "popq %%r15\n\tpopq %%r14\n\tpopq %%r13\n\tpopq %%r12\n\tpopq %%rbp\n\tpopq %%rbx\n\t"
        "leaq 128(%%rsp), %%rsp"
        : "=a"(changed)
        :
        : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
    return changed;
}

/* Goes down through the host: descend → host_descend → descend … to 0, and returns the number of levels. */
int64_t descend(int64_t depth) {
    volatile uint8_t frame[256];
    frame[0] = (uint8_t)depth;
    frame[255] = 1;
    int64_t below = depth <= 0 ? 0 : host_descend(depth - 1) + 1;
    return frame[0] == (uint8_t)depth && frame[255] == 1 ? below : -1;
}

/* A table in constant data: the address of an import, and of an export. */
static int64_t (*const table[])(int64_t, int64_t) = {host_add, call_add};
int64_t call_add_through_table(uint64_t entry, int64_t left, int64_t right) { return table[entry % 2](left, right); }

/* The optional import's result, or -1 where the host does not offer it. */
int64_t call_optional(int64_t value) { return host_optional ? host_optional(value) : -1; }

bool clock_moves_on(void) {
    uint64_t before = microvm_clock(MICROVM_CLOCK_MONOTONIC);
    return microvm_clock(MICROVM_CLOCK_MONOTONIC) >= before;
}
uint64_t real_time(void) { return microvm_clock(MICROVM_CLOCK_REALTIME); }
uint64_t unknown_clock(int32_t clock) { return microvm_clock(clock); }

struct microvm_span random_bytes(size_t length) {
    static uint8_t bytes[4096];
    length = length < sizeof bytes ? length : sizeof bytes;
    microvm_random(bytes, length);
    return (struct microvm_span){bytes, length};
}
void random_at(uint64_t address, uint64_t length) { microvm_random((void *)address, length); }
void write_at(int32_t stream, uint64_t address, uint64_t length) {
    microvm_write(stream, (const void *)address, length);
}
uint64_t heap_base(void) { return (uint64_t)microvm_heap().base; }
uint64_t heap_length(void) { return microvm_heap().length; }
