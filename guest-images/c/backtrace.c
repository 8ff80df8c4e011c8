/* Stacks to be walked: three functions deep, and whatever is done at the bottom. */
#include "microvm.h"

/* The host calls `outer` with the same. */
__attribute__((weak)) int64_t host_enter(int64_t level, int64_t deed);

uint64_t landmark = 0x1122334455667788;
char text_on_heap[] = "written to the heap";
/* 1 once the guest spins. */
volatile uint64_t is_spinning;

#define NOINLINE __attribute__((noinline))
/* Behind a call, so that it is none at the end, which would be a jump. */
#define NO_TAIL() __asm__ volatile("" ::: "memory")

NOINLINE int64_t innermost(int64_t level, int64_t deed);

NOINLINE int64_t middle(int64_t level, int64_t deed) {
    int64_t result = innermost(level, deed + 1);
    NO_TAIL();
    return result + 1;
}

NOINLINE int64_t outer(int64_t level, int64_t deed) {
    volatile uint8_t frame[200];
    frame[0] = (uint8_t)deed;
    int64_t result = middle(level, deed - 1);
    NO_TAIL();
    return result + frame[0];
}

NOINLINE int64_t innermost(int64_t level, int64_t deed) {
    if (level > 0) {
        int64_t result = host_enter(level - 1, deed);
        NO_TAIL();
        return result;
    }
    switch (deed) {
    case 0: *(volatile uint64_t *)8 = 1; break;
    case 1:
        is_spinning = 1;
        for (;;)
            __asm__ volatile("pause");
    case 2: microvm_abort("given up", 8);
    case 3: ((void (*)(void))0x1000)(); break;
    case 4: __asm__ volatile("ud2"); break;
    case 5: return host_enter(-1, deed);
    case 6: microvm_write(1, (const void *)0x7f0000000000, 16); break;
    default: break;
    }
    NO_TAIL();
    return 0;
}

NOINLINE int64_t recurse(int64_t depth) {
    volatile int64_t frame = depth; /* so that it has one before it faults */
    if (depth <= 0) {
        *(volatile uint64_t *)8 = 1;
        return 0;
    }
    int64_t result = recurse(depth - 1);
    NO_TAIL();
    return result + frame;
}

/* Faults with these values in the registers that lead up the stack. */
__attribute__((naked)) void fault_with(__attribute__((unused)) uint64_t frame_pointer,
                                       __attribute__((unused)) uint64_t stack_pointer) {
    __asm__("movq %rdi, %rbp\n\tmovq %rsi, %rsp\n\tud2");
}

/* Returns to an address. */
__attribute__((naked)) void return_to(__attribute__((unused)) uint64_t address) { __asm__("pushq %rdi\n\tret"); }

/* Writes to the heap, whose address is the argument, and faults with vectors that say which they are: bytes of their
 * number, and 0x80 more in the upper half where the registers are wide. */
uint8_t vectors[16][32];
uint64_t fault_with_vectors(uint64_t heap, bool wide) {
    memcpy((void *)heap, text_on_heap, sizeof text_on_heap);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 32; j++)
            vectors[i][j] = (uint8_t)(i + (j >= 16 ? 0x80 : 0));
#define NARROW(n) "movdqu vectors+32*" #n "(%%rip), %%xmm" #n "\n\t"
#define WIDE(n) "vmovdqu vectors+32*" #n "(%%rip), %%ymm" #n "\n\t"
#define FAULT "movq $0x1234567, %%r15\n\tmovq $8, %%rbx\n\tmovq $1, (%%rbx)\n\t"
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
    if (wide)
        __asm__ volatile(EACH(WIDE) FAULT ::: "r15", "rbx");
    else
        __asm__ volatile(EACH(NARROW) FAULT ::: "r15", "rbx");
    return heap;
}

uint64_t heap_address(void) { return (uint64_t)microvm_heap().base; }
uint64_t spinning_address(void) { return (uint64_t)&is_spinning; }

/* Touches one byte of each page of a stretch. */
void touch(uint64_t address, uint64_t length) {
    for (uint64_t i = 0; i < length; i += 4096)
        ((volatile uint8_t *)address)[i] = 1;
}
int64_t answer(void) { return 42; }
