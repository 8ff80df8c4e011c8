/* Functions over every type of value, and over many arguments: what a caller has to get right in passing them. */
#include "microvm.h"

#define INTEGER_FUNCTIONS(name, type, wider)                                                                          \
    type echo_##name(type value) { return value; }                                                                    \
    type add_##name(type left, type right) { return (type)((wider)left + (wider)right); }                             \
    type negate_##name(type value) { return (type)(0 - (wider)value); }

INTEGER_FUNCTIONS(i8, int8_t, uint32_t)
INTEGER_FUNCTIONS(i16, int16_t, uint32_t)
INTEGER_FUNCTIONS(i32, int32_t, uint32_t)
INTEGER_FUNCTIONS(i64, int64_t, uint64_t)
INTEGER_FUNCTIONS(u8, uint8_t, uint32_t)
INTEGER_FUNCTIONS(u16, uint16_t, uint32_t)
INTEGER_FUNCTIONS(u32, uint32_t, uint32_t)
INTEGER_FUNCTIONS(u64, uint64_t, uint64_t)

float echo_f32(float value) { return value; }
float add_f32(float left, float right) { return left + right; }
float negate_f32(float value) { return -value; }

double echo_f64(double value) { return value; }
double add_f64(double left, double right) { return left + right; }
double negate_f64(double value) { return -value; }

bool echo_bool(bool value) { return value; }
bool not_bool(bool value) { return !value; }
bool and_bool(bool left, bool right) { return left && right; }

/* The ABI leaves the upper bits of a narrow result undefined; these set them. */
__attribute__((naked)) int8_t dirty_i8(void) { __asm__("movq $-0x5a5a5a02, %rax\n\tret"); }    /* -2 */
__attribute__((naked)) uint16_t dirty_u16(void) { __asm__("movq $-0x5a5afffe, %rax\n\tret"); } /* 2 */
__attribute__((naked)) uint32_t dirty_u32(void) { __asm__("movabsq $0x5a5a5a5a00000003, %rax\n\tret"); } /* 3 */
__attribute__((naked)) bool dirty_bool(void) { __asm__("movq $0x5a5a5a01, %rax\n\tret"); }     /* true */

/* The value of the whole argument register: shows what the caller left in the upper bits. */
uint64_t register_of_argument(uint64_t value) { return value; }

int64_t add(int64_t left, int64_t right) { return (int64_t)((uint64_t)left + (uint64_t)right); }

void nothing(void) {}

/* Weighted sums: each argument counts as many times as its place, so that no two can change places unnoticed. */
int64_t sum_2(int64_t a, int64_t b) { return a + 2 * b; }
int64_t sum_3(int64_t a, int64_t b, int64_t c) { return sum_2(a, b) + 3 * c; }
int64_t sum_4(int64_t a, int64_t b, int64_t c, int64_t d) { return sum_3(a, b, c) + 4 * d; }
int64_t sum_5(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e) { return sum_4(a, b, c, d) + 5 * e; }
int64_t sum_6(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f) {
    return sum_5(a, b, c, d, e) + 6 * f;
}
int64_t sum_7(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g) {
    return sum_6(a, b, c, d, e, f) + 7 * g;
}
int64_t sum_8(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h) {
    return sum_7(a, b, c, d, e, f, g) + 8 * h;
}
int64_t sum_9(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h, int64_t i) {
    return sum_8(a, b, c, d, e, f, g, h) + 9 * i;
}
int64_t sum_10(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h, int64_t i,
               int64_t j) {
    return sum_9(a, b, c, d, e, f, g, h, i) + 10 * j;
}
int64_t sum_11(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h, int64_t i,
               int64_t j, int64_t k) {
    return sum_10(a, b, c, d, e, f, g, h, i, j) + 11 * k;
}

/* Six integers in registers, eight doubles in registers, and of each the rest on the stack, in the order of the
 * declaration. */
double sum_20(int64_t a, double b, int64_t c, double d, int64_t e, double f, int64_t g, double h, int64_t i, double j,
              int64_t k, double l, int64_t m, double n, int64_t o, double p, int64_t q, double r, int64_t s,
              double t) {
    int64_t integers = 1 * a + 3 * c + 5 * e + 7 * g + 9 * i + 11 * k + 13 * m + 15 * o + 17 * q + 19 * s;
    double doubles = 2 * b + 4 * d + 6 * f + 8 * h + 10 * j + 12 * l + 14 * n + 16 * p + 18 * r + 20 * t;
    return (double)integers + doubles;
}

double sum_11_doubles(double a, double b, double c, double d, double e, double f, double g, double h, double i,
                      double j, double k) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k;
}

/* Narrow arguments on the stack. */
int64_t sum_narrow(int8_t a, uint8_t b, int16_t c, uint16_t d, int32_t e, uint32_t f, int8_t g, uint8_t h, int16_t i,
                   uint16_t j, bool k, float l) {
    return a + 2 * b + 3 * c + 4 * d + 5 * (int64_t)e + 6 * (int64_t)f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k
        + 12 * (int64_t)l;
}

double mix(int32_t a, double b, uint8_t c, float d, int64_t e, bool f) {
    return a + 2 * b + 3 * c + 4 * d + 5 * (double)e + 6 * f;
}

/* The stack as a function of the ABI finds it: 8 off a multiple of 16. Returns rsp modulo 16 before the call's return
 * address was pushed, so 0; with arguments on the stack too. */
__attribute__((naked)) int64_t stack_alignment(void) { __asm__("leaq 8(%rsp), %rax\n\tandq $15, %rax\n\tret"); }
__attribute__((naked)) int64_t stack_alignment_7(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f,
                                                 int64_t g) {
    __asm__("leaq 8(%rsp), %rax\n\tandq $15, %rax\n\tret");
}

/* Uses x87, SSE and, where the processor has it, 256-bit registers: sums of squares to `count`. */
double x87_sum(int64_t count) {
    long double sum = 0;
    for (int64_t i = 1; i <= count; i++)
        sum += (long double)i * (long double)i;
    return (double)sum;
}

__attribute__((target("avx"))) double avx_sum(int64_t count) {
    typedef double vector __attribute__((vector_size(32)));
    vector sum = {0}, step = {4, 4, 4, 4}, value = {1, 2, 3, 4};
    for (int64_t i = 0; i < count / 4; i++, value += step)
        sum += value * value;
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* MXCSR and the x87 control word as a function finds them: 0x1f80 and 0x37f. */
uint32_t mxcsr(void) { return __builtin_ia32_stmxcsr(); }
uint16_t x87_control_word(void) {
    uint16_t word;
    __asm__ volatile("fnstcw %0" : "=m"(word));
    return word;
}

/* Leaf and subleaf in, one register out: 0 eax, 1 ebx, 2 ecx, 3 edx. */
uint32_t cpuid(uint32_t leaf, uint32_t subleaf, int32_t which) {
    uint32_t registers[4];
    __asm__ volatile("cpuid" : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]), "=d"(registers[3])
                     : "a"(leaf), "c"(subleaf));
    return registers[which & 3];
}

uint64_t xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
