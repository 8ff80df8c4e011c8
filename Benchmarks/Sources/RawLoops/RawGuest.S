// Ring-3 code that every raw machine gets at RAW_TRAMPOLINE. It knows the mailbox by its absolute address only, so it
// can be copied anywhere.

#include "RawLayout.h"

    .section .rodata
    .globl raw_trampoline, raw_host_thunk, raw_batch, raw_hot, raw_hot_thunk, raw_trampoline_end

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

// Calls for which both sides poll, called like one: returns when it is told to leave. Neither side does anything while
// it is the other's turn, so plain stores are enough: this processor makes them visible in their order.
raw_hot:
    sub $8, %rsp
1:  mov RAW_HOT_MAILBOX + RAW_HOT_TURN, %eax
    cmp $RAW_HOT_GUEST, %eax
    je 2f
    cmp $RAW_HOT_LEAVE, %eax
    je 3f
    pause
    jmp 1b
2:  mov RAW_HOT_MAILBOX + RAW_HOT_FIRST, %rdi
    mov RAW_HOT_MAILBOX + RAW_HOT_SECOND, %rsi
    call *(RAW_HOT_MAILBOX + RAW_HOT_FUNCTION)
    mov %rax, RAW_HOT_MAILBOX + RAW_HOT_RESULT
    mov %rdx, RAW_HOT_MAILBOX + RAW_HOT_RESULT_LENGTH
    movl $RAW_HOT_IDLE, RAW_HOT_MAILBOX + RAW_HOT_TURN
    jmp 1b
3:  add $8, %rsp
    ret

// The module's one import, on a machine for such calls.
raw_hot_thunk:
    mov %rdi, RAW_HOT_MAILBOX + RAW_HOT_FIRST
    mov %rsi, RAW_HOT_MAILBOX + RAW_HOT_SECOND
    movl $RAW_HOT_HOST_CALL, RAW_HOT_MAILBOX + RAW_HOT_TURN
1:  cmpl $RAW_HOT_GUEST, RAW_HOT_MAILBOX + RAW_HOT_TURN
    je 2f
    pause
    jmp 1b
2:  mov RAW_HOT_MAILBOX + RAW_HOT_RESULT, %rax
    ret
raw_trampoline_end:

    .section .note.GNU-stack, "", @progbits
