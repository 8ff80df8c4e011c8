/* setjmp and longjmp. The buffer holds rbx, rbp, r12 to r15, rsp and the return address: 64 bytes, fewer than any
 * jmp_buf. The aliases are the names that glibc's headers make of them. */
#include "runtime.h"

__attribute__((naked, returns_twice)) int _setjmp(void *buffer) {
    __asm__("movq %rbx, (%rdi)\n\t"
            "movq %rbp, 8(%rdi)\n\t"
            "movq %r12, 16(%rdi)\n\t"
            "movq %r13, 24(%rdi)\n\t"
            "movq %r14, 32(%rdi)\n\t"
            "movq %r15, 40(%rdi)\n\t"
            "leaq 8(%rsp), %rax\n\t"
            "movq %rax, 48(%rdi)\n\t"
            "movq (%rsp), %rax\n\t"
            "movq %rax, 56(%rdi)\n\t"
            "xorl %eax, %eax\n\t"
            "ret");
}

__attribute__((naked, noreturn)) void longjmp(void *buffer, int value) {
    __asm__("movl %esi, %eax\n\t"
            "testl %eax, %eax\n\t"
            "jnz 1f\n\t"
            "incl %eax\n"
            "1:\n\t"
            "movq (%rdi), %rbx\n\t"
            "movq 8(%rdi), %rbp\n\t"
            "movq 16(%rdi), %r12\n\t"
            "movq 24(%rdi), %r13\n\t"
            "movq 32(%rdi), %r14\n\t"
            "movq 40(%rdi), %r15\n\t"
            "movq 48(%rdi), %rsp\n\t"
            "jmpq *56(%rdi)");
}

int setjmp(void *buffer) __attribute__((alias("_setjmp"), returns_twice));
int __sigsetjmp(void *buffer) __attribute__((alias("_setjmp"), returns_twice));
void __longjmp_chk(void *buffer, int value) __attribute__((alias("longjmp"), noreturn));
void siglongjmp(void *buffer, int value) __attribute__((alias("longjmp"), noreturn));
