/* Holds a known value in every register while something happens to the guest, and shows afterwards what is left. */
#include "microvm.h"

void host_tick(void);

/* General registers in the order rax rbx rcx rdx rsi rdi rbp r8 ... r15, then MXCSR, then the vector registers. */
struct registers {
    uint64_t general[15];
    uint32_t mxcsr, padding;
    uint8_t vectors[16][32];
};
__attribute__((used)) static struct registers known, found;

/* Whether the registers hold their values, whether the host wants them let go, how often the guest has looked for that;
 * whether a host call is made instead, and whether the vector registers are 256 bits wide. */
__attribute__((used)) static volatile uint64_t words[3];
__attribute__((used)) static uint64_t calls_host, is_wide;

uint64_t words_address(void) { return (uint64_t)words; }
struct microvm_span known_registers(void) { return (struct microvm_span){&known, sizeof known}; }
struct microvm_span found_registers(void) { return (struct microvm_span){&found, sizeof found}; }

void prepare(uint64_t seed, uint32_t mxcsr, bool wide) {
    uint64_t state = seed;
    uint8_t *bytes = (uint8_t *)&known;
    for (size_t i = 0; i < sizeof known; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(state >> 56);
    }
    known.mxcsr = mxcsr;
    known.padding = 0;
    is_wide = wide;
    memset(&found, 0, sizeof found);
    memset((void *)words, 0, sizeof words);
}

#define EACH_VECTOR(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define EACH_GENERAL(DO) \
    DO(0, rax) DO(1, rbx) DO(2, rcx) DO(3, rdx) DO(4, rsi) DO(5, rdi) DO(6, rbp) DO(7, r8) DO(8, r9) DO(9, r10) \
    DO(10, r11) DO(11, r12) DO(12, r13) DO(13, r14) DO(14, r15)
#define LOAD_GENERAL(n, name) "movq known+8*" #n "(%rip), %" #name "\n\t"
#define STORE_GENERAL(n, name) "movq %" #name ", found+8*" #n "(%rip)\n\t"
#define LOAD_NARROW(n) "movdqu known+128+32*" #n "(%rip), %xmm" #n "\n\t"
#define STORE_NARROW(n) "movdqu %xmm" #n ", found+128+32*" #n "(%rip)\n\t"
#define LOAD_WIDE(n) "vmovdqu known+128+32*" #n "(%rip), %ymm" #n "\n\t"
#define STORE_WIDE(n) "vmovdqu %ymm" #n ", found+128+32*" #n "(%rip)\n\t"

/* Spins with the known values until the host says otherwise or, asked for that, makes one host call with them. */
__attribute__((naked)) void hold_registers(__attribute__((unused)) bool call) {
    __asm__(
        "pushq %rbx\n\tpushq %rbp\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\tsubq $8, %rsp\n\t"
        "movzbl %dil, %eax\n\tmovq %rax, calls_host(%rip)\n\t"
        "ldmxcsr known+120(%rip)\n\t"
        "cmpq $0, is_wide(%rip)\n\tje 1f\n\t"
        EACH_VECTOR(LOAD_WIDE)
        "jmp 2f\n"
        "1:\t" EACH_VECTOR(LOAD_NARROW)
        "2:\t" EACH_GENERAL(LOAD_GENERAL)
        "cmpq $0, calls_host(%rip)\n\tjne 4f\n\t"
        "movq $1, words(%rip)\n"
        "3:\tpause\n\tincq words+16(%rip)\n\tcmpq $0, words+8(%rip)\n\tje 3b\n\tjmp 5f\n"
        "4:\tcall host_tick@PLT\n"
        "5:\t" EACH_GENERAL(STORE_GENERAL)
        "stmxcsr found+120(%rip)\n\t"
        "cmpq $0, is_wide(%rip)\n\tje 6f\n\t"
        EACH_VECTOR(STORE_WIDE)
        "vzeroupper\n\tjmp 7f\n"
        "6:\t" EACH_VECTOR(STORE_NARROW)
        "7:\taddq $8, %rsp\n\tpopq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbp\n\tpopq %rbx\n\tret");
}

/* MXCSR as this function finds it, and what it leaves behind. */
uint32_t exchange_mxcsr(uint32_t next) {
    uint32_t before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(next);
    return before;
}
