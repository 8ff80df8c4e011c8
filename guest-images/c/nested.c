/* Calls from the host that are made from inside calls to the host. */
#include "microvm.h"

int64_t host_enter(int64_t level, int64_t deed, uint64_t place); /* the host calls `go_down` with the same */
void host_visit(void);                                          /* the host calls whatever it likes */
void host_mark(int64_t number);                                 /* the guest says that it has got here */

int setjmp(void *buffer) __attribute__((returns_twice));
__attribute__((noreturn)) void longjmp(void *buffer, int value);

/* MARK: Down through the host, and what happens at the bottom */

static int64_t overflow_stack(int64_t depth) {
    volatile uint8_t frame[1024];
    frame[0] = (uint8_t)depth;
    return depth < 0 ? 0 : overflow_stack(depth + 1) + frame[0];
}

/* `place[0]` becomes 1 when it begins. */
static int64_t perform(int64_t deed, volatile uint64_t *place) {
    place[0] = 1;
    switch (deed) {
    case 1:
        for (;;)
            __asm__ volatile("pause");
    case 2: *(volatile uint64_t *)8 = 1; break;
    case 3: return overflow_stack(0);
    case 4: microvm_abort("given up", 8);
    case 5: host_mark(0); break;
    default: break;
    }
    return 0;
}

/* go_down → host_enter → go_down … to level 0, where the deed is done. Returns the number of levels; `place[1]` counts
 * the guest code that runs behind a host call, `place[2]` that before one. */
int64_t go_down(int64_t level, int64_t deed, volatile uint64_t *place) {
    place[2]++;
    if (level <= 0)
        return perform(deed, place);
    int64_t below = host_enter(level - 1, deed, (uint64_t)place);
    place[1]++;
    return below + 1;
}

/* Two host calls, the second of which comes behind whatever the first one did. */
void visit_twice(volatile uint64_t *place) {
    place[0] = 1;
    host_visit();
    place[1]++;
    host_visit();
    place[1]++;
}

/* MARK: Jumps over the host */

static uint64_t buffer[8];

/* Where `jump_back` comes back to, over the host function that called it. */
int64_t jump_over_host(int64_t goes_on) {
    if (setjmp(buffer)) {
        for (int64_t i = 0; i < goes_on; i++)
            host_mark(i);
        return 42;
    }
    host_visit();
    return 0;
}
void jump_back(void) { longjmp(buffer, 1); }

/* MARK: What a call keeps over nested ones */

struct microvm_span keep_text(const char *text, size_t length, const uint8_t *bytes, size_t count) {
    static char copy[65536];
    host_visit();
    if (length + count > sizeof copy)
        return (struct microvm_span){copy, 0};
    memcpy(copy, text, length);
    memcpy(copy + length, bytes, count);
    return (struct microvm_span){copy, length + count};
}

/* Without a copy: the result is the argument itself, where the host has put it. */
struct microvm_span keep_argument(const char *text, size_t length) {
    host_visit();
    return (struct microvm_span){(void *)text, length};
}

double keep_numbers(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h, double x,
                    float y) {
    host_visit();
    return (double)(a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h) + x * (double)y;
}

/* The callee-saved registers over a host call. Returns 0 when none has changed. */
int64_t keep_registers(void) {
    int64_t changed;
    __asm__ volatile(
        "leaq -128(%%rsp), %%rsp\n\t" /* past the red zone */
        "pushq %%rbx\n\tpushq %%rbp\n\tpushq %%r12\n\tpushq %%r13\n\tpushq %%r14\n\tpushq %%r15\n\t"
        "movq %%rsp, %%r15\n\tandq $-16, %%rsp\n\t"
        "movl $0x11, %%ebx\n\tmovl $0x22, %%ebp\n\tmovl $0x33, %%r12d\n\tmovl $0x44, %%r13d\n\tmovl $0x55, %%r14d\n\t"
        "call host_visit@PLT\n\t"
        "movq %%r15, %%rsp\n\t"
        "subq $0x11, %%rbx\n\tsubq $0x22, %%rbp\n\tsubq $0x33, %%r12\n\tsubq $0x44, %%r13\n\tsubq $0x55, %%r14\n\t"
        "movq %%rbx, %%rax\n\torq %%rbp, %%rax\n\torq %%r12, %%rax\n\torq %%r13, %%rax\n\torq %%r14, %%rax\n\t"
        "popq %%r15\n\tpopq %%r14\n\tpopq %%r13\n\tpopq %%r12\n\tpopq %%rbp\n\tpopq %%rbx\n\t"
        "leaq 128(%%rsp), %%rsp"
        : "=a"(changed)
        :
        : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3",
          "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return changed;
}

/* The control words of vector and x87 arithmetic, which belong to the callee-saved state: both round towards zero over
 * a host call. Returns 0 when they have stayed. */
int64_t keep_controls(void) {
    uint32_t vector, vector_wanted = 0x7f80, vector_before;
    uint16_t x87, x87_wanted = 0x0f7f, x87_before;
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(vector_before), "=m"(x87_before));
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(vector_wanted), "m"(x87_wanted));
    host_visit();
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(vector), "=m"(x87));
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(vector_before), "m"(x87_before));
    return (int64_t)((vector ^ vector_wanted) & 0xffc0) | (int64_t)(x87 ^ x87_wanted);
}

/* Overwrites every register that a function may change. */
void scramble(void) {
    __asm__ volatile(
        "movq $-1, %%rax\n\tmovq %%rax, %%rcx\n\tmovq %%rax, %%rdx\n\tmovq %%rax, %%rsi\n\tmovq %%rax, %%rdi\n\t"
        "movq %%rax, %%r8\n\tmovq %%rax, %%r9\n\tmovq %%rax, %%r10\n\tmovq %%rax, %%r11\n\t"
        "movq %%rax, %%xmm0\n\tmovaps %%xmm0, %%xmm1\n\tmovaps %%xmm0, %%xmm2\n\tmovaps %%xmm0, %%xmm3\n\t"
        "movaps %%xmm0, %%xmm4\n\tmovaps %%xmm0, %%xmm5\n\tmovaps %%xmm0, %%xmm6\n\tmovaps %%xmm0, %%xmm7\n\t"
        "movaps %%xmm0, %%xmm8\n\tmovaps %%xmm0, %%xmm9\n\tmovaps %%xmm0, %%xmm10\n\tmovaps %%xmm0, %%xmm11\n\t"
        "movaps %%xmm0, %%xmm12\n\tmovaps %%xmm0, %%xmm13\n\tmovaps %%xmm0, %%xmm14\n\tmovaps %%xmm0, %%xmm15"
        :
        :
        : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
          "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

/* MARK: What is called from inside */

int64_t sum_of_nine(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h, int64_t i) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i;
}
double sum_of_ten(double a, double b, double c, double d, double e, double f, double g, double h, double i, float j) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * (double)j;
}
double mix(int8_t a, float b, uint16_t c, double d, bool e, int64_t f, uint8_t g, int32_t h, int64_t i, int16_t j) {
    return a + (double)b + c + d + (e ? 1 : 0) + (double)f + g + h + (double)i + j;
}
int8_t negate(int8_t value) { return (int8_t)-value; }
bool invert(bool value) { return !value; }
float halve(float value) { return value / 2; }
void do_nothing(void) {}
struct microvm_span backwards(const uint8_t *bytes, size_t length) {
    static uint8_t copy[65536];
    length = length < sizeof copy ? length : sizeof copy;
    for (size_t i = 0; i < length; i++)
        copy[i] = bytes[length - 1 - i];
    return (struct microvm_span){copy, length};
}
struct microvm_span join(const char *left, size_t left_length, const char *right, size_t right_length) {
    static char copy[65536];
    if (left_length + right_length > sizeof copy)
        return (struct microvm_span){copy, 0};
    memcpy(copy, left, left_length);
    memcpy(copy + left_length, right, right_length);
    return (struct microvm_span){copy, left_length + right_length};
}
/* The address of its argument: where the host has put it. */
uint64_t address_of(const char *text, size_t length) {
    (void)length;
    return (uint64_t)text;
}
struct microvm_span no_text(void) { return (struct microvm_span){(void *)"\xff\xfe", 2}; }
struct microvm_span wild_bytes(void) { return (struct microvm_span){(void *)0x7f0000000000, 16}; }
int64_t answer(void) { return 42; }
