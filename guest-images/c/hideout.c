/* A tenant that hides a secret wherever ring 3 can, and one that looks everywhere for it. */
#include "microvm.h"

#define SECRET 0x5ec7e75ec7e75ec7ull

/* Pages of 4 KiB on purpose in every kind of memory. */
static uint64_t initialised[1024] = {1};
static uint64_t uninitialised[4096];
static __thread uint64_t local[64];

/* The library's own pages that ring 3 can write: where the extended state is saved, and the mailbox. */
#define VECTOR_STATE ((volatile uint64_t *)0x18000)
#define MAILBOX ((volatile uint64_t *)0x21000)

__attribute__((aligned(64), used)) static uint8_t area[16384];
__attribute__((used)) static uint64_t has_xsave, can_write_bases;
/* Registers as `look` has found them: rbx rbp r10 r12 r13 r14 r15, flags, ds es fs gs, and the bases of fs and gs. */
__attribute__((used)) static uint64_t found[16];

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
    __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(subleaf));
}

static uint64_t enabled_components(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (uint64_t)high << 32;
}

static void fill(volatile uint64_t *words, size_t count) {
    for (size_t i = 0; i < count; i++)
        words[i] = SECRET ^ i;
}

/* All but the first pages of the heap, which other functions here use for their answers. */
static void hide_in_memory(void) {
    struct microvm_span heap = microvm_heap();
    fill(initialised, 1024);
    fill(uninitialised, 4096);
    fill(local, 64);
    fill(VECTOR_STATE, 2048);
    for (size_t page = 0; page < heap.length / 4096; page += 97)
        fill((volatile uint64_t *)((uint8_t *)heap.base + page * 4096), 16);
    volatile uint64_t stack[8192];
    fill(stack, 8192);
}

/* Every component of the extended state gets bytes of the secret, as far as it takes them. */
static void hide_in_extended_state(void) {
    uint32_t a, b, c, d;
    cpuid(1, 0, &a, &b, &c, &d);
    has_xsave = c >> 27 & 1;
    if (!has_xsave) {
        __asm__ volatile("fxsave64 area(%%rip)" ::: "memory");
        memset(area + 32, 0x5e, 384);
        __asm__ volatile("fxrstor64 area(%%rip)" ::: "memory");
        return;
    }
    uint64_t components = enabled_components();
    __asm__ volatile("xsave64 area(%%rip)" : : "a"(-1), "d"(-1) : "memory");
    memset(area + 32, 0x5e, 384); /* x87 and SSE; the first 32 bytes are control words */
    uint16_t *control = (uint16_t *)area;
    control[0] = 0x0f7f;                    /* x87 control: other rounding and precision */
    *(uint32_t *)(area + 24) = 0x1f80 | 0x6000; /* MXCSR: rounds toward zero */
    *(uint64_t *)(area + 8) = SECRET >> 16;  /* the last x87 instruction's address, and its operand's */
    *(uint64_t *)(area + 16) = SECRET >> 16;
    uint64_t wanted = components & 3;
    for (uint32_t component = 2; component < 63; component++) {
        if (!(components >> component & 1) || component == 17 || component == 18)
            continue; /* tiles have a format of their own that has to be right */
        cpuid(0xd, component, &a, &b, &c, &d);
        if (a == 0 || b + a > sizeof area)
            continue;
        if (component == 9)
            *(uint32_t *)(area + b) = 0x55555550; /* protection keys: all but the first forbidden to write */
        else if (component == 3 || component == 4)
            continue; /* bounds registers */
        else
            memset(area + b, 0x5e, a);
        wanted |= 1ull << component;
    }
    *(uint64_t *)(area + 512) = wanted;
    memset(area + 520, 0, 56);
    __asm__ volatile("xrstor64 area(%%rip)" : : "a"(-1), "d"(-1) : "memory");
}

/* Hides, says so in `*place`, and spins with the secret in all other registers. `bases` tells whether ring 3 may write
 * the bases of FS and GS here. */
void hide(volatile uint64_t *place, bool bases) {
    hide_in_memory();
    hide_in_extended_state();
    can_write_bases = bases;
    fill(MAILBOX + 24, 488);
    __asm__ volatile(
        "cmpq $0, can_write_bases(%%rip)\n\tje 1f\n\t"
        "movq %1, %%rcx\n\twrgsbase %%rcx\n\twrfsbase %%rcx\n"
        "1:\txorl %%ecx, %%ecx\n\tmovl %%ecx, %%ds\n\tmovl %%ecx, %%es\n\t"
        "movq $1, (%0)\n\t"
        "pushq $0x240cd7\n\tpopfq\n\t" /* flags: carry, direction, overflow, alignment checks, identification */
        "movq %1, %%rax\n\tmovq %%rax, %%rbx\n\tmovq %%rax, %%rcx\n\tmovq %%rax, %%rdx\n\tmovq %%rax, %%rsi\n\t"
        "movq %%rax, %%rdi\n\tmovq %%rax, %%rbp\n\tmovq %%rax, %%r8\n\tmovq %%rax, %%r9\n\tmovq %%rax, %%r10\n\t"
        "movq %%rax, %%r11\n\tmovq %%rax, %%r12\n\tmovq %%rax, %%r13\n\tmovq %%rax, %%r14\n\tmovq %%rax, %%r15\n"
        "2:\tpause\n\tjmp 2b"
        :
        : "S"(place), "D"(SECRET >> 16)
        : "memory");
}

/* Stores every register as it was at the entry, and the whole extended state. */
__attribute__((naked)) void look(__attribute__((unused)) bool xsave) {
    __asm__(
        "movq %rbx, found(%rip)\n\tmovq %rbp, found+8(%rip)\n\tmovq %r10, found+16(%rip)\n\t"
        "movq %r12, found+24(%rip)\n\tmovq %r13, found+32(%rip)\n\tmovq %r14, found+40(%rip)\n\t"
        "movq %r15, found+48(%rip)\n\t"
        "pushfq\n\tpopq found+56(%rip)\n\t"
        "xorl %eax, %eax\n\tmovl %ds, %eax\n\tmovq %rax, found+64(%rip)\n\t"
        "movl %es, %eax\n\tmovq %rax, found+72(%rip)\n\t"
        "movl %fs, %eax\n\tmovq %rax, found+80(%rip)\n\tmovl %gs, %eax\n\tmovq %rax, found+88(%rip)\n\t"
        "movq %fs:0, %rax\n\tmovq %rax, found+96(%rip)\n\t"
        "testb %dil, %dil\n\tje 1f\n\t"
        "movl $-1, %eax\n\tmovl $-1, %edx\n\txsave64 area(%rip)\n\tret\n"
        "1:\tfxsave64 area(%rip)\n\tret");
}

static bool is_secret(double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits == SECRET;
}

/* How many of the registers for arguments hold the secret. */
uint64_t count_secrets(uint64_t i0, uint64_t i1, uint64_t i2, uint64_t i3, uint64_t i4, uint64_t i5, double v0,
                       double v1, double v2, double v3, double v4, double v5, double v6, double v7) {
    return (i0 == SECRET) + (i1 == SECRET) + (i2 == SECRET) + (i3 == SECRET) + (i4 == SECRET) + (i5 == SECRET) +
           is_secret(v0) + is_secret(v1) + is_secret(v2) + is_secret(v3) + is_secret(v4) + is_secret(v5) +
           is_secret(v6) + is_secret(v7);
}

/* An instruction that is undefined where ring 3 may not read or write the bases of FS and GS. */
uint64_t read_gs_base(void) {
    uint64_t base;
    __asm__ volatile("rdgsbase %0" : "=r"(base));
    return base;
}

/* Whether there is XSAVE for ring 3. */
bool knows_xsave(void) {
    uint32_t a, b, c, d;
    cpuid(1, 0, &a, &b, &c, &d);
    return c >> 27 & 1;
}

struct microvm_span registers(void) { return (struct microvm_span){found, sizeof found}; }
/* Without the header, which says what the processor takes for initial, and may say it differently each time. */
struct microvm_span extended_state(void) {
    memset(area + 512, 0, 64);
    return (struct microvm_span){area, sizeof area};
}
int64_t answer(void) { return 42; }
