// The code the library puts into every guest: ring-0 exception stubs and the ring-3 trampoline.
//
// Both blobs are position fixed: they address the mailbox and each other by the absolute guest addresses of
// guest_layout.h, and are copied there byte for byte. Nothing here runs in the host.

#include "guest_layout.h"

    .section .rodata
    .balign 16

// ---- Ring 0 --------------------------------------------------------------------------------------------------------
// One stub per exception vector, SHIM_EXCEPTION_STUB_SIZE bytes apart. The port tells the host the vector, so no guest
// register is touched; the processor has already pushed the interrupted state on the exception stack. Ring 0 may be
// emulated at half a microsecond an instruction, hence as few of them as can be. iretq resumes the guest.
    .globl shim_supervisor_code, shim_supervisor_code_end
    .hidden shim_supervisor_code, shim_supervisor_code_end
shim_supervisor_code:
    .set vector, 0
    .rept 32
    .balign SHIM_EXCEPTION_STUB_SIZE
    outb %al, $(SHIM_EXCEPTION_PORT_BASE + vector)
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    addq $8, %rsp                               // the error code
    .endif
    iretq
    .set vector, vector + 1
    .endr
    .balign SHIM_EXCEPTION_STUB_SIZE
shim_supervisor_code_end:

// ---- Ring 3 --------------------------------------------------------------------------------------------------------
// The guest can execute this page and cannot write it. Every word it reads from the mailbox is written by the host
// just before the entry, but the mailbox itself is guest memory: the host believes none of it when it comes back.
    .balign 16
    .globl shim_trampoline, shim_trampoline_end
    .hidden shim_trampoline, shim_trampoline_end
    .globl shim_trampoline_return, shim_trampoline_invoke, shim_trampoline_host_call
    .hidden shim_trampoline_return, shim_trampoline_invoke, shim_trampoline_host_call
    .globl shim_trampoline_thread_local_address, shim_trampoline_stack_top
    .hidden shim_trampoline_thread_local_address, shim_trampoline_stack_top
    .globl shim_trampoline_reset, shim_trampoline_reset_legacy, shim_trampoline_save, shim_trampoline_save_legacy
    .hidden shim_trampoline_reset, shim_trampoline_reset_legacy, shim_trampoline_save, shim_trampoline_save_legacy
    .globl shim_trampoline_load, shim_trampoline_load_legacy
    .hidden shim_trampoline_load, shim_trampoline_load_legacy
    .globl shim_trampoline_invoke_end
    .hidden shim_trampoline_invoke_end
shim_trampoline:
    // A fresh stack, and the control state the ABI promises a function at its entry (AMD64 ABI 3.2.1 and 3.4.1),
    // whatever the call before it left behind: now, while nobody waits for it.
    // Each part is made anew only where it is not as it should be, which is cheaper to find out: flags that are more
    // than the outcome of some arithmetic; the x87 control and status words. They do not tell which x87 registers are
    // in use: emms frees them and does nothing else, but it raises an exception that is pending.
    // No word of the stack is used for that: while there is no call, memory stays as it is.
    movl $SHIM_MAILBOX + SHIM_MAILBOX_SCRATCH + 8, %esp
    pushfq
    testl $0x244500, (%rsp)                     // trap, direction, nested task, alignment check, identification
    jnz 6f
7:  fnstsw %ax
    fnstcw (%rsp)
    testw %ax, %ax
    jnz 8f
    cmpw $0x037f, (%rsp)
    jne 8f
    emms
9:  movq $0, SHIM_MAILBOX + SHIM_MAILBOX_SCRATCH
    movq shim_trampoline_stack_top(%rip), %rsp
    ldmxcsr default_mxcsr(%rip)
    xorl %ebp, %ebp
    // Between two calls: the guest looks for the next one as often as the host has said, and leaves if there is none.
    // Whoever takes the last look's turn away, the host by a call or the guest by leaving, does so in one step.
    movl SHIM_MAILBOX + SHIM_MAILBOX_CALL_POLLS, %ecx
4:  movl SHIM_MAILBOX + SHIM_MAILBOX_OWNER, %eax
    cmpl $SHIM_OWNER_GUEST, %eax
    je 1f
    cmpl $SHIM_OWNER_GUEST_POLLED, %eax
    je 1f
    cmpl $SHIM_OWNER_IDLE, %eax
    jne 5f
    pause
    decl %ecx
    jnz 4b
    movl $SHIM_OWNER_HOST, %ecx
    lock cmpxchgl %ecx, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
    jne shim_trampoline
    jmp shim_trampoline_return
    // A top-level guest call.
1:  cmpl $SHIM_COMMAND_BATCH, SHIM_MAILBOX + SHIM_MAILBOX_COMMAND
    je 3f
    call shim_trampoline_invoke
2:  movl $SHIM_OWNER_GUEST_POLLED, %eax
    movl $SHIM_OWNER_IDLE, %ecx
    lock cmpxchgl %ecx, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
    je shim_trampoline
5:  movl $SHIM_OWNER_HOST, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
shim_trampoline_return:
    outb %al, $SHIM_PORT_RETURN
    jmp shim_trampoline
6:  movq $2, (%rsp)
    popfq
    pushfq
    jmp 7b
8:  fninit
    jmp 9b

// One of many calls for one entry: its frame becomes the mailbox's for as long as it runs, since its host calls and the
// nested calls of those use that as well. Where the guest is, it keeps in the mailbox and in no register: what a
// function that breaks the ABI does to the others of its batch is up to the guest, and the host believes neither.
3:  movq SHIM_MAILBOX + SHIM_MAILBOX_BATCH_FUNCTION, %rax
    movq %rax, SHIM_MAILBOX + SHIM_MAILBOX_FUNCTION
    movq SHIM_MAILBOX + SHIM_MAILBOX_BATCH_FRAME, %rsi
    .set offset, 0
    .rept 7
    movups SHIM_FRAME_INTEGERS + offset(%rsi), %xmm0
    movups %xmm0, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + offset
    .set offset, offset + 16
    .endr
    movl $0, SHIM_MAILBOX + SHIM_MAILBOX_COMMAND
    call shim_trampoline_invoke
    movq SHIM_MAILBOX + SHIM_MAILBOX_BATCH_FRAME, %rsi
    .set offset, 0
    .rept 3
    movq SHIM_MAILBOX + SHIM_MAILBOX_RESULTS + offset, %rax
    movq %rax, SHIM_FRAME_RESULTS + offset(%rsi)
    .set offset, offset + 8
    .endr
    addq $SHIM_FRAME_SIZE, SHIM_MAILBOX + SHIM_MAILBOX_BATCH_FRAME
    movl $SHIM_COMMAND_BATCH, SHIM_MAILBOX + SHIM_MAILBOX_COMMAND
    incl SHIM_MAILBOX + SHIM_MAILBOX_BATCH_DONE
    decl SHIM_MAILBOX + SHIM_MAILBOX_BATCH_COUNT
    jnz shim_trampoline
    jmp 2b

// Calls the function of the mailbox's frame with its arguments and stores the results there. Backtraces rely on the
// order of what is in this page, and on the frame that this makes with its first two instructions; debuggers are told
// of that frame (DebugSymbols.swift).
shim_trampoline_invoke:
    pushq %rbp
    movq %rsp, %rbp
    movl SHIM_MAILBOX + SHIM_MAILBOX_COMMAND, %ecx
    andq $-16, %rsp
    testl $1, %ecx
    jz 2f
    pushq $0                                    // keeps the stack aligned below an odd number of words
    jmp 2f
1:  pushq SHIM_MAILBOX + SHIM_MAILBOX_STACK - 8(, %rcx, 8)
    decl %ecx
2:  testl %ecx, %ecx
    jnz 1b
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 0, %xmm0
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 8, %xmm1
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 16, %xmm2
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 24, %xmm3
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 32, %xmm4
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 40, %xmm5
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 48, %xmm6
    movq SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 56, %xmm7
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 0, %rdi
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 8, %rsi
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 16, %rdx
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 24, %rcx
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 32, %r8
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 40, %r9
    movl $8, %eax                               // a variadic callee wants an upper bound of the vector registers used
    movq SHIM_MAILBOX + SHIM_MAILBOX_FUNCTION, %r11
    call *%r11
    movq %rax, SHIM_MAILBOX + SHIM_MAILBOX_RESULTS + 0
    movq %rdx, SHIM_MAILBOX + SHIM_MAILBOX_RESULTS + 8
    movq %xmm0, SHIM_MAILBOX + SHIM_MAILBOX_RESULT_VECTOR
    movq %rbp, %rsp
    popq %rbp
    ret
shim_trampoline_invoke_end:

// Every import thunk jumps here with the import's index in %eax and everything else as the caller left it. The answer
// is a result, or a request to call a guest function first: on the same stack, so the ABI preserves the outer call. A
// caller who polls is offered the host call for a while, and waited for as long; anybody else gets it by an exit.
    .balign 16
shim_trampoline_host_call:
    movq %rax, SHIM_MAILBOX + SHIM_MAILBOX_IMPORT
    movq %rdi, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 0
    movq %rsi, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 8
    movq %rdx, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 16
    movq %rcx, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 24
    movq %r8, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 32
    movq %r9, SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 40
    movq %xmm0, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 0
    movq %xmm1, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 8
    movq %xmm2, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 16
    movq %xmm3, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 24
    movq %xmm4, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 32
    movq %xmm5, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 40
    movq %xmm6, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 48
    movq %xmm7, SHIM_MAILBOX + SHIM_MAILBOX_VECTORS + 56
    movq %rsp, SHIM_MAILBOX + SHIM_MAILBOX_STACK_POINTER
    movl $SHIM_OWNER_GUEST_POLLED, %eax
    movl $SHIM_OWNER_HOST_CALL, %ecx
    lock cmpxchgl %ecx, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
    je 1f
4:  movl $SHIM_OWNER_HOST, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
5:  outb %al, $SHIM_PORT_HOST_CALL
1:  movl SHIM_MAILBOX + SHIM_MAILBOX_HOST_CALL_POLLS, %ecx
6:  movl SHIM_MAILBOX + SHIM_MAILBOX_OWNER, %eax
    cmpl $SHIM_OWNER_GUEST, %eax
    je 2f
    cmpl $SHIM_OWNER_GUEST_POLLED, %eax
    je 2f
    cmpl $SHIM_OWNER_HOST_CALL, %eax
    je 7f
    cmpl $SHIM_OWNER_TAKEN, %eax
    jne 4b
7:  pause
    decl %ecx
    jnz 6b
    movl $SHIM_OWNER_HOST, %ecx
    lock cmpxchgl %ecx, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
    jne 1b
    jmp 5b
2:  cmpl $SHIM_COMMAND_RETURN, SHIM_MAILBOX + SHIM_MAILBOX_COMMAND
    jne 3f
    movq SHIM_MAILBOX + SHIM_MAILBOX_RESULTS + 0, %rax
    movq SHIM_MAILBOX + SHIM_MAILBOX_RESULTS + 8, %rdx
    movq SHIM_MAILBOX + SHIM_MAILBOX_RESULT_VECTOR, %xmm0
    movq SHIM_MAILBOX + SHIM_MAILBOX_INTEGERS + 24, %rcx // what the caller had there, who need not know of polling
    ret
3:  call shim_trampoline_invoke
    movl $SHIM_OWNER_HOST, SHIM_MAILBOX + SHIM_MAILBOX_OWNER
    outb %al, $SHIM_PORT_NESTED_RETURN          // a port of its own: returning to the wrong level is found out
    jmp 1b

// __tls_get_addr: there is one module, so the words of the descriptor are distances that add up (AMD64 ABI supplement
// on thread-local storage, general and local dynamic model). The loader stores the block's distance from the thread
// pointer in the first, because linkers leave the second as the distance within the block without a relocation.
    .balign 16
shim_trampoline_thread_local_address:
    movq %fs:0, %rax
    addq (%rdi), %rax
    addq 8(%rdi), %rax
    ret

// Where the host lets a restored guest begin: every component of the extended state becomes what it is after a reset.
// Nothing a guest can do keeps that from happening: it cannot write this page, the host sets the instruction pointer
// and the flags, and all that decides what xrstor does (CR0, CR4, XCR0) is out of ring 3's reach. All components are
// asked for, because the guest may have more than the host was told (Intel SDM volume 1, 13.8).
    .balign 16
shim_trampoline_reset:
    movl $-1, %eax
    movl $-1, %edx
    xrstor64 initial_state(%rip)
    xorl %eax, %eax
    xorl %edx, %edx
    jmp shim_trampoline

// The same on a processor without XSAVE, which then has no more than x87 and SSE.
    .balign 16
shim_trampoline_reset_legacy:
    fxrstor64 initial_state(%rip)
    jmp shim_trampoline

// The extended state of a call that is held, to memory and back. The host has kept the registers these use.
    .balign 16
shim_trampoline_save:
    movl $-1, %eax
    movl $-1, %edx
    xsave64 SHIM_VECTOR_STATE
    outb %al, $SHIM_PORT_RETURN
    ud2
    .balign 16
shim_trampoline_save_legacy:
    fxsave64 SHIM_VECTOR_STATE
    outb %al, $SHIM_PORT_RETURN
    ud2
    .balign 16
shim_trampoline_load:
    movl $-1, %eax
    movl $-1, %edx
    xrstor64 SHIM_VECTOR_STATE
    outb %al, $SHIM_PORT_RETURN
    ud2
    .balign 16
shim_trampoline_load_legacy:
    fxrstor64 SHIM_VECTOR_STATE
    outb %al, $SHIM_PORT_RETURN
    ud2

    .balign 8
shim_trampoline_stack_top:
    .quad 0                                     // the loader's
default_mxcsr:
    .long 0x1f80
// The area of xrstor and fxrstor (Intel SDM volume 1, 13.4): no component is in it, so that all are initial; the
// control word is for fxrstor, MXCSR for both.
    .balign 64
initial_state:
    .word 0x037f
    .skip 22
    .long 0x1f80
    .skip 548
    .balign 16
shim_trampoline_end:

    .section .note.GNU-stack, "", @progbits
