// Ring-3 code that every raw machine gets at RAW_TRAMPOLINE. It knows the mailbox by its absolute address only, so it
// can be copied anywhere.

#include "RawLayout.h"

    .section .rodata
    .globl raw_trampoline, raw_host_thunk, raw_batch, raw_trampoline_end

// Guest calls, one a turn: the host fills the mailbox and enters; the port says that the result is there.
raw_trampoline:
    mov RAW_MAILBOX + RAW_FIRST, %rdi
    mov RAW_MAILBOX + RAW_SECOND, %rsi
    call *(RAW_MAILBOX + RAW_FUNCTION)
    mov %rax, RAW_MAILBOX + RAW_RESULT
    mov %rdx, RAW_MAILBOX + RAW_RESULT_LENGTH
    out %al, $RAW_RETURN_PORT
    jmp raw_trampoline

// The module's one import.
raw_host_thunk:
    mov %rdi, RAW_MAILBOX + RAW_HOST_FIRST
    mov %rsi, RAW_MAILBOX + RAW_HOST_SECOND
    out %al, $RAW_HOST_PORT
    mov RAW_MAILBOX + RAW_HOST_RESULT, %rax
    ret

// Many calls for one entry, called like one: the first argument says where theirs are, which the results replace, and
// the second how many they are.
raw_batch:
    push %rbx
    push %rbp
    push %r12
    mov %rdi, %rbx
    mov %rsi, %rbp
    mov RAW_MAILBOX + RAW_HOST_FIRST, %r12
1:  mov (%rbx), %rdi
    mov 8(%rbx), %rsi
    call *%r12
    mov %rax, (%rbx)
    add $16, %rbx
    dec %rbp
    jnz 1b
    pop %r12
    pop %rbp
    pop %rbx
    ret
raw_trampoline_end:

    .section .note.GNU-stack, "", @progbits
