/* A guest that lies to the library in its own pages: the mailbox (0x21000) and the ports are all it can reach. */
#include "microvm.h"

int64_t host_take(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, double h);
struct microvm_span host_text(const char *text, size_t length);
double host_take_doubles(double a, double b, double c, double d, double e, double f, double g, double h, double i,
                         double j, int64_t k, float l);

static volatile uint64_t *const mailbox = (volatile uint64_t *)0x21000;
enum { import_index = 1, result = 2, stack_pointer = 16, words = 512 };

static void fill(uint64_t value) {
    for (int i = 0; i < words; i++)
        mailbox[i] = value;
}
static void out_host_call(void) { __asm__ volatile("outb %%al, $0x11" : : "a"(0) : "memory"); }
static void out_return(void) { __asm__ volatile("outb %%al, $0x10" : : "a"(0) : "memory"); }

/* A host call with an index, a stack pointer and arguments of the caller's choice. */
int64_t forge_call(uint64_t index, uint64_t stack, uint64_t argument) {
    fill(argument);
    mailbox[import_index] = index;
    mailbox[stack_pointer] = stack;
    out_host_call();
    return (int64_t)mailbox[result];
}

/* A return from inside a function, with a result of the caller's choice, and what becomes of the function then. */
int64_t forge_return(uint64_t value) {
    fill(value);
    out_return();
    return 42;
}

/* Fills the whole page with a value, and then makes honest calls. */
int64_t scribble_and_call(uint64_t value) {
    fill(value);
    return host_take(1, 2, 3, 4, 5, 6, 7, 8.5);
}
struct microvm_span scribble_and_call_text(uint64_t value) {
    fill(value);
    return host_text("text", 4);
}

/* Fills the whole page and returns: the honest result of the trampoline is all that counts. */
int64_t scribble(uint64_t value) {
    fill(value);
    return 42;
}

double call_with_doubles(void) { return host_take_doubles(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12); }

/* Calls an import's thunk with the stack pointer elsewhere: the seventh integer and the return address are there. */
__attribute__((naked)) int64_t call_on_stack(uint64_t stack) {
    __asm__("pushq %rbp\n\tmovq %rsp, %rbp\n\tmovq %rdi, %rsp\n\tcall host_take@PLT\n\t"
            "movq %rbp, %rsp\n\tpopq %rbp\n\tret");
}
/* Jumps to a thunk with a return address of the caller's choice, without a stack to speak of. */
__attribute__((naked)) int64_t jump_on_stack(uint64_t stack) {
    __asm__("movq %rdi, %rsp\n\tjmp host_take@PLT");
}

/* Says whose turn it is, and returns, calls the host, or neither. */
static void say_turn(uint32_t turn) { *(volatile uint32_t *)mailbox = turn; }
int64_t say_turn_and_return(uint32_t turn) {
    say_turn(turn);
    return 42;
}
int64_t say_turn_and_call(uint32_t turn) {
    say_turn(turn);
    return host_take(1, 2, 3, 4, 5, 6, 7, 8.5);
}
void say_turn_and_spin(uint32_t turn) {
    say_turn(turn);
    for (;;)
        __asm__ volatile("pause");
}
/* The same over and over, one after the other. */
void say_turns(uint64_t seed) {
    for (;;) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        say_turn((uint32_t)(seed >> 33) % 9);
        for (uint64_t i = 0; i < (seed >> 50) % 200; i++)
            __asm__ volatile("pause");
    }
}

/* Never returns, but answers each call itself as soon as it comes, as if it had. */
void pretend_to_return(void) {
    for (;;) {
        mailbox[result] = 7;
        say_turn(3);
        while (*(volatile uint32_t *)mailbox == 3)
            __asm__ volatile("pause");
    }
}

/* Enters the library's code in the middle: the trampoline is at 0x20000, the thunks at 0x22000. */
void jump_to(uint64_t address) { ((void (*)(void))address)(); }

/* Reads what is at an address, byte by byte, into the result. */
uint64_t read_word(uint64_t address) { return *(volatile uint64_t *)address; }

int64_t answer(void) { return 42; }
uint64_t constant_address(void) {
    static const uint64_t constant[2] = {0x1122334455667788, 2};
    __asm__ volatile("" : : "r"(constant) : "memory");
    return (uint64_t)constant;
}
uint64_t variable_address(void) {
    static uint64_t variable[4] = {1, 2, 3, 4};
    __asm__ volatile("" : : "r"(variable) : "memory");
    return (uint64_t)variable;
}
uint64_t code_address(void) { return (uint64_t)answer; }
uint64_t stack_address(void) {
    uint64_t address;
    __asm__("movq %%rsp, %0" : "=r"(address));
    return address;
}
