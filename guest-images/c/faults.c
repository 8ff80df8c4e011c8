/* Misbehaviour, one export for each kind. Most of them must not return. */
#include "microvm.h"

/* MARK: Memory */

uint64_t read_address(uint64_t address) { return *(volatile uint64_t *)address; }
uint8_t read_byte(uint64_t address) { return *(volatile uint8_t *)address; }
void write_address(uint64_t address, uint64_t value) { *(volatile uint64_t *)address = value; }
void write_byte(uint64_t address, uint8_t value) { *(volatile uint8_t *)address = value; }
void execute_address(uint64_t address) {
    __asm__("" : "+r"(address)); /* the compiler must not know the address: it would make a trap of a call to null */
    ((void (*)(void))address)();
}

uint64_t read_null(void) { return read_address(0); }
void write_null(void) { write_address(8, 1); }
void execute_null(void) { execute_address(0); }
uint64_t read_wild(void) { return read_address(0x7f0000000000); }
void write_wild(void) { write_address(0x7f0000000000, 1); }
void execute_wild(void) { execute_address(0x7f0000000000); }
uint64_t read_non_canonical(void) { return read_address(0x8000000000000000); }
void write_non_canonical(void) { write_address(0x1234567800000000, 1); }
void execute_non_canonical(void) { execute_address(0x8000000000001000); }
uint64_t read_kernel_half(void) { return read_address(0xffff800000000000); }

/* A supervisor page: the first page above the null guard. */
uint64_t read_supervisor(void) { return read_address(0x10000); }
void write_supervisor(void) { write_address(0x10000, 1); }
void execute_supervisor(void) { execute_address(0x10000); }

int64_t answer(void) { return 42; }
static const uint64_t constant_words[2] = {1, 2};
static void (*const relocated_constant[])(void) = {execute_null, execute_wild};
static uint8_t writable_code[16] = {0xc3}; /* ret */

void write_own_code(void) { write_byte((uint64_t)answer, 0xc3); }
void write_constant(void) { write_address((uint64_t)constant_words, 3); }
/* Constants with relocations, and the offset table, are read-only once they are filled in (RELRO). */
void write_relocated_constant(void) { write_address((uint64_t)relocated_constant, 3); }
void execute_data(void) { execute_address((uint64_t)writable_code); }
void execute_constant(void) { execute_address((uint64_t)constant_words); }
void execute_heap(void) {
    uint8_t *code = malloc(16);
    if (!code)
        abort();
    *code = 0xc3;
    execute_address((uint64_t)code);
}
void execute_stack(void) {
    volatile uint8_t code[16] = {0xc3};
    execute_address((uint64_t)code);
}

/* Runs off the end of the heap, byte by byte. */
void write_beyond_heap(void) {
    struct microvm_span heap = microvm_heap();
    write_byte((uint64_t)heap.base + heap.length, 1);
}
void write_below_heap(void) { write_byte((uint64_t)microvm_heap().base - 1, 1); }

/* A string instruction that never ends by itself. */
void endless_string_instruction(void) {
    uint64_t count = UINT64_MAX;
    void *to = microvm_heap().base;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0) : "memory");
}

/* MARK: The stack */

__attribute__((noinline)) static int64_t recurse(volatile int64_t *above) {
    volatile int64_t frame[64];
    frame[0] = above[0] - 1;
    return frame[0] == 0 ? 0 : recurse(frame) + frame[0];
}
int64_t overflow_stack(void) {
    volatile int64_t levels[1] = {INT64_MAX};
    return recurse(levels);
}
/* So many levels of a little over half a KiB each. */
int64_t recurse_to(int64_t depth) {
    volatile int64_t levels[1] = {depth};
    return depth > 0 ? recurse(levels) : 0;
}

/* Uses so many bytes of stack, touching each page from the top down. */
int64_t use_stack(uint64_t size) {
    volatile uint8_t *block = __builtin_alloca(size);
    int64_t pages = 0;
    for (uint64_t at = size; at >= 4096; at -= 4096, pages++)
        block[at - 1] = 1;
    return pages;
}

/* Touches only the far end of a large block: may jump over a guard page. */
uint8_t leap_over_stack(uint64_t size) {
    volatile uint8_t *block = __builtin_alloca(size);
    block[0] = 1;
    return block[0];
}

__attribute__((naked)) void stack_pointer_null(void) { __asm__("xorl %esp, %esp\n\tpushq %rax\n\tret"); }
__attribute__((naked)) void stack_pointer_non_canonical(void) {
    __asm__("movabsq $0x8000000000000000, %rsp\n\tpushq %rax\n\tret");
}
__attribute__((naked)) void stack_pointer_wild(uint64_t address) { __asm__("movq %rdi, %rsp\n\tpushq %rax\n\tret"); }
/* A bad stack pointer, and then an exception for another reason. */
__attribute__((naked)) void stack_pointer_null_then_trap(void) { __asm__("xorl %esp, %esp\n\tud2"); }

/* Writes past an array in a function that the stack protector guards. */
__attribute__((noinline)) static void copy_too_much(const uint8_t *bytes, size_t length) {
    volatile uint8_t small[16];
    for (size_t i = 0; i < length; i++)
        small[i] = bytes[i];
}
void smash_stack(void) {
    uint8_t bytes[64];
    memset(bytes, 0x41, sizeof bytes);
    copy_too_much(bytes, 48);
}
void fail_stack_check(void) {
    extern void __stack_chk_fail(void);
    __stack_chk_fail();
}

/* Returns where nobody called from. */
__attribute__((naked)) void return_to(uint64_t address) { __asm__("movq %rdi, (%rsp)\n\tret"); }
__attribute__((naked)) void return_off_by_eight(void) { __asm__("popq %rax\n\tret"); }

/* MARK: Arithmetic and traps */

int64_t divide(int64_t dividend, int64_t divisor) {
    int64_t quotient, remainder;
    __asm__ volatile("cqto\n\tidivq %3" : "=a"(quotient), "=&d"(remainder) : "0"(dividend), "r"(divisor) : "cc");
    return quotient;
}
void divide_by_zero(void) { divide(1, 0); }
void divide_overflow(void) { divide(INT64_MIN, -1); }

void undefined_instruction(void) { __asm__ volatile("ud2"); }
void undefined_opcode(void) { __asm__ volatile(".byte 0x06"); } /* push %es: gone in 64-bit mode */
void breakpoint(void) { __asm__ volatile("int3"); }
void interrupt_1(void) { __asm__ volatile(".byte 0xf1"); } /* int1 */
void interrupt_3(void) { __asm__ volatile(".byte 0xcd, 0x03"); }
void interrupt_overflow(void) { __asm__ volatile("int $4"); }
void interrupt_page_fault(void) { __asm__ volatile("int $14"); }
void interrupt_double_fault(void) { __asm__ volatile("int $8"); }
void interrupt_0x20(void) { __asm__ volatile("int $0x20"); }
void interrupt_0x80(void) { __asm__ volatile("int $0x80"); }
void interrupt_0xff(void) { __asm__ volatile("int $0xff"); }
void single_step(void) { __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tnop" : : : "memory", "cc"); }

void check_alignment(void) {
    uint8_t bytes[16] = {0};
    uint64_t address = ((uint64_t)bytes | 1);
    __asm__ volatile("pushfq\n\torq $0x40000, (%%rsp)\n\tpopfq\n\tmovl (%0), %%eax"
                     : : "r"(address) : "memory", "cc", "eax");
}
void misaligned_vector(void) {
    uint8_t bytes[48];
    uint64_t address = ((uint64_t)bytes + 15) / 16 * 16 + 1;
    __asm__ volatile("movaps (%0), %%xmm0" : : "r"(address) : "memory", "xmm0");
}

void divide_vector_by_zero(void) {
    uint32_t unmasked = 0x1f80 & ~(1u << 9);
    __asm__ volatile("ldmxcsr %0\n\tmovl $1, %%eax\n\tcvtsi2sd %%eax, %%xmm0\n\txorpd %%xmm1, %%xmm1\n\t"
                     "divsd %%xmm1, %%xmm0" : : "m"(unmasked) : "eax", "xmm0", "xmm1");
}
void divide_x87_by_zero(void) {
    uint16_t unmasked = 0x37f & ~(1u << 2);
    __asm__ volatile("fldcw %0\n\tfldz\n\tfld1\n\tfdivp\n\tfwait\n\tfstp %%st(0)" : : "m"(unmasked));
}
void reserved_mxcsr(void) {
    uint32_t reserved = 0xffff0000;
    __asm__ volatile("ldmxcsr %0" : : "m"(reserved));
}

/* MARK: System and privileged instructions */

int64_t system_call(void) {
    int64_t result = 39;
    __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    return result;
}
void system_enter(void) { __asm__ volatile("sysenter" : : : "memory", "rcx", "rdx"); }
void system_return(void) { __asm__ volatile("sysretq" : : "c"(0x400000), "a"(0) : "r11", "memory"); }
void system_exit(void) { __asm__ volatile("sysexitq" : : "c"(0x400000), "d"(0x400000) : "memory"); }
void halt(void) { __asm__ volatile("hlt"); }
void clear_interrupts(void) { __asm__ volatile("cli"); }
void set_interrupts(void) { __asm__ volatile("sti"); }
void read_msr(void) { __asm__ volatile("rdmsr" : : "c"(0xc0000080) : "eax", "edx"); }
void write_msr(void) { __asm__ volatile("wrmsr" : : "c"(0xc0000080), "a"(0), "d"(0)); }
uint64_t read_cr0(void) { uint64_t value; __asm__ volatile("movq %%cr0, %0" : "=r"(value)); return value; }
uint64_t read_cr3(void) { uint64_t value; __asm__ volatile("movq %%cr3, %0" : "=r"(value)); return value; }
uint64_t read_cr8(void) { uint64_t value; __asm__ volatile("movq %%cr8, %0" : "=r"(value)); return value; }
void write_cr0(void) { __asm__ volatile("movq %0, %%cr0" : : "r"(0ull)); }
void write_cr3(void) { __asm__ volatile("movq %0, %%cr3" : : "r"(0ull)); }
void write_cr4(void) { __asm__ volatile("movq %0, %%cr4" : : "r"(0ull)); }
void write_cr8(void) { __asm__ volatile("movq %0, %%cr8" : : "r"(0ull)); }
uint64_t read_dr7(void) { uint64_t value; __asm__ volatile("movq %%dr7, %0" : "=r"(value)); return value; }
void write_dr0(void) { __asm__ volatile("movq %0, %%dr0" : : "r"(0ull)); }
void write_dr7(void) { __asm__ volatile("movq %0, %%dr7" : : "r"(0ull)); }

static const struct __attribute__((packed)) { uint16_t limit; uint64_t base; } null_table = {0, 0};
void load_gdt(void) { __asm__ volatile("lgdt %0" : : "m"(null_table)); }
void load_idt(void) { __asm__ volatile("lidt %0" : : "m"(null_table)); }
void load_ldt(void) { __asm__ volatile("lldt %w0" : : "r"(0)); }
void load_task_register(void) { __asm__ volatile("ltr %w0" : : "r"(0x40)); }
void store_gdt(void) {
    uint8_t table[16];
    __asm__ volatile("sgdt %0" : "=m"(table)); /* may be allowed: shows an address, changes nothing */
}
void load_machine_status(void) { __asm__ volatile("lmsw %w0" : : "r"(0)); }
void clear_task_switched(void) { __asm__ volatile("clts"); }
void invalidate_page(void) { __asm__ volatile("invlpg (%0)" : : "r"(0x400000ull) : "memory"); }
void invalidate_caches(void) { __asm__ volatile("wbinvd" : : : "memory"); }
void discard_caches(void) { __asm__ volatile("invd" : : : "memory"); }
void set_extended_control(void) { __asm__ volatile("xsetbv" : : "c"(0), "a"(3), "d"(0)); }
void swap_gs(void) { __asm__ volatile("swapgs"); }
void read_performance_counter(void) { __asm__ volatile("rdpmc" : : "c"(0) : "eax", "edx"); }
void monitor(void) { __asm__ volatile("monitor" : : "a"(&null_table), "c"(0), "d"(0)); }
void wait_for_monitor(void) { __asm__ volatile("mwait" : : "a"(0), "c"(0)); }
int64_t call_hypervisor_intel(void) {
    int64_t result = 0;
    __asm__ volatile(".byte 0x0f, 0x01, 0xc1" : "+a"(result) : : "memory"); /* vmcall */
    return result;
}
int64_t call_hypervisor_amd(void) {
    int64_t result = 0;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd9" : "+a"(result) : : "memory"); /* vmmcall */
    return result;
}
void run_virtual_machine(void) { __asm__ volatile(".byte 0x0f, 0x01, 0xd8" : : "a"(0x400000ull) : "memory"); }
void resume_from_system_management(void) { __asm__ volatile("rsm" : : : "memory"); }

/* MARK: Segments */

void load_data_segment(uint16_t selector) { __asm__ volatile("movw %0, %%ds" : : "r"(selector) : "memory"); }
void load_stack_segment(uint16_t selector) { __asm__ volatile("movw %0, %%ss" : : "r"(selector) : "memory"); }
/* Loses the FS base, and with it the canary and all thread-local variables: uses it afterwards. */
uint64_t load_fs_segment(uint16_t selector) {
    uint64_t canary;
    __asm__ volatile("movw %1, %%fs\n\tmovq %%fs:0x28, %0" : "=r"(canary) : "r"(selector) : "memory");
    return canary;
}
void far_jump(uint16_t selector) {
    struct __attribute__((packed)) { uint32_t offset; uint16_t selector; } target = {(uint32_t)(uint64_t)answer,
                                                                                     selector};
    __asm__ volatile("ljmpl *%0" : : "m"(target) : "memory");
}
void far_return(uint16_t selector) {
    __asm__ volatile("pushq %0\n\tpushq %1\n\tlretq" : : "r"((uint64_t)selector), "r"(answer) : "memory");
}
/* iretq to the next instruction with selectors of the caller's choice: 0x08 would be ring 0. */
void interrupt_return(uint16_t code_selector, uint16_t stack_selector) {
    __asm__ volatile("movq %%rsp, %%rax\n\tpushq %1\n\tpushq %%rax\n\tpushfq\n\tpushq %0\n\tleaq 1f(%%rip), %%rax\n\t"
                     "pushq %%rax\n\tiretq\n1:"
                     : : "r"((uint64_t)code_selector), "r"((uint64_t)stack_selector) : "rax", "memory", "cc");
}
/* Sets flags, such as IOPL (0x3000), VM (0x20000) or NT (0x4000), and returns what became of them. */
uint64_t set_flags(uint64_t flags) {
    uint64_t after;
    __asm__ volatile("pushq %1\n\tpopfq\n\tpushfq\n\tpopq %0" : "=r"(after) : "r"(flags) : "memory", "cc");
    return after;
}

/* MARK: Ports */

#define IN(name, type, instruction)                                                                                   \
    type name(uint16_t port) {                                                                                        \
        type value;                                                                                                   \
        __asm__ volatile(instruction " %1, %0" : "=a"(value) : "d"(port));                                            \
        return value;                                                                                                 \
    }
IN(in_8, uint8_t, "inb")
IN(in_16, uint16_t, "inw")
IN(in_32, uint32_t, "inl")
void out_8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory"); }
void out_16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "d"(port) : "memory"); }
void out_32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory"); }
void out_string(uint16_t port, uint64_t count) {
    const uint8_t *from = (const uint8_t *)answer;
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
}
void in_string(uint16_t port, uint64_t count) {
    static uint8_t bytes[4096];
    uint8_t *to = bytes;
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(port) : "memory");
}

/* MARK: Lies to the library */

/* Writes `count` words of `value` from `address` on (the mailbox, say) and then does what only the library's own code
 * should: an `out` to one of its ports. */
void forge_exit(uint16_t port, uint64_t address, uint64_t value, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        write_address(address + 8 * i, value);
    out_8(port, (uint8_t)value);
}
/* The same with pseudo-random words, from a seed. */
void forge_exit_with_noise(uint16_t port, uint64_t address, uint64_t count, uint64_t seed) {
    for (uint64_t i = 0; i < count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        write_address(address + 8 * i, i % 3 ? seed >> 40 : seed);
    }
    out_8(port, (uint8_t)seed);
}
/* Fills memory with a value and returns: what the host reads of it later must not matter. */
int64_t fill_and_return(uint64_t address, uint64_t value, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        write_address(address + 8 * i, value);
    return 42;
}

/* Returns with state that a caller does not expect. */
__attribute__((naked)) int64_t return_with_direction_flag(void) { __asm__("movl $42, %eax\n\tstd\n\tret"); }
__attribute__((naked)) int64_t return_with_alignment_check(void) {
    __asm__("pushfq\n\torq $0x40000, (%rsp)\n\tpopfq\n\tmovl $42, %eax\n\tret");
}
__attribute__((naked)) int64_t return_with_nested_task(void) {
    __asm__("pushfq\n\torq $0x4000, (%rsp)\n\tpopfq\n\tmovl $42, %eax\n\tret");
}
__attribute__((naked)) int64_t return_with_wrong_registers(void) {
    __asm__("movq $-1, %rbx\n\tmovq %rbx, %rbp\n\tmovq %rbx, %r12\n\tmovq %rbx, %r13\n\tmovq %rbx, %r14\n\t"
            "movq %rbx, %r15\n\tmovl $42, %eax\n\tret");
}
__attribute__((naked)) int64_t return_with_null_fs(void) {
    __asm__("xorl %ecx, %ecx\n\tmovw %cx, %fs\n\tmovl $42, %eax\n\tret");
}
__attribute__((naked)) int64_t return_with_dirty_vectors(void) {
    __asm__("movl $-1, %eax\n\tmovq %rax, %xmm15\n\tfld1\n\tfld1\n\tfldpi\n\tpushq $0x1fc0\n\tldmxcsr (%rsp)\n\t"
            "popq %rax\n\tmovl $42, %eax\n\tret");
}
/* Changes the FS base by instruction, where the processor lets it. */
int64_t set_fs_base(uint64_t base) {
    __asm__ volatile("wrfsbase %0" : : "r"(base) : "memory");
    return 42;
}

/* MARK: Ends */

void abort_with_message(const char *text, size_t length) { microvm_abort(text, length); }
void abort_without_message(void) { microvm_abort(NULL, 0); }
void abort_at(uint64_t address, uint64_t length) { microvm_abort((const char *)address, length); }
void abort_with_bad_pointer(void) { microvm_abort((const char *)0x7f0000000000, 16); }
void abort_with_endless_message(void) { microvm_abort("x", UINT64_MAX); }
void abort_not_utf8(void) { microvm_abort("\xff\xfe", 2); }
void write_with_bad_pointer(void) { microvm_write(MICROVM_STANDARD_OUTPUT, (const void *)0x7f0000000000, 16); }
void random_into_own_code(void) { microvm_random((void *)answer, 16); }
