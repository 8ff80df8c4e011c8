// Guest addresses, ports and the mailbox's offsets: read by supervisor.S and by Swift, so written once.
#ifndef SWIFT_MICROVM_GUEST_LAYOUT_H
#define SWIFT_MICROVM_GUEST_LAYOUT_H

// Pages below SHIM_SUPERVISOR_CODE are never mapped: they are the null guard.
#define SHIM_SUPERVISOR_CODE 0x10000   // ring 0, execute
#define SHIM_SUPERVISOR_TABLES 0x11000 // ring 0, read: GDT, IDT, TSS
#define SHIM_EXCEPTION_STACK 0x13000   // ring 0, write: one page, unmapped neighbours
#define SHIM_DOUBLE_FAULT_STACK 0x15000
#define SHIM_VECTOR_STATE 0x18000 // ring 3, write: where xsave puts the extended state of a call that is held
#define SHIM_VECTOR_STATE_SIZE 0x4000
#define SHIM_TRAMPOLINE 0x20000 // ring 3, execute
#define SHIM_MAILBOX 0x21000    // ring 3, write
#define SHIM_THUNKS 0x22000     // ring 3, execute: one thunk of SHIM_THUNK_SIZE bytes an import
#define SHIM_THUNK_SIZE 16

#define SHIM_EXCEPTION_STUB_SIZE 16

#define SHIM_PORT_RETURN 0x10    // a guest call has returned
#define SHIM_PORT_HOST_CALL 0x11 // an import has been called
#define SHIM_PORT_NESTED_RETURN 0x12 // a guest call made from inside a host call has returned
#define SHIM_EXCEPTION_PORT_BASE 0x20

// Whose turn it is, and who polls for it: the article Polling has the protocol.
#define SHIM_OWNER_HOST 0         // the host's: the guest has left by an exit, or is about to
#define SHIM_OWNER_GUEST 1        // the guest's, which ends it by an exit
#define SHIM_OWNER_GUEST_POLLED 2 // the guest's, and a caller polls for what it does next
#define SHIM_OWNER_IDLE 3         // the guest polls for a call: the one before has returned
#define SHIM_OWNER_HOST_CALL 4    // the guest polls for somebody who answers its host call
#define SHIM_OWNER_TAKEN 5        // the host's: a caller answers, and the guest polls for that
#define SHIM_OWNER_LEAVE 6        // the guest, which polls, shall leave by an exit

// What the guest is to do next, if not to call a function with so many words on the stack.
#define SHIM_COMMAND_RETURN 0xffffffff // to return from an import
#define SHIM_COMMAND_BATCH 0xfffffffe  // to call a function for each frame of a batch

// Offsets in the mailbox. A call and its result are in one cache line, which changes hands twice; vectors have the next
// one; what only the guest writes, or hardly anybody, is in the third.
#define SHIM_MAILBOX_OWNER 0        // u32, changes hands last: whose turn it is
#define SHIM_MAILBOX_COMMAND 4      // u32, words at SHIM_MAILBOX_STACK, or a command
#define SHIM_MAILBOX_FUNCTION 8     // u64, the function to call
#define SHIM_MAILBOX_IMPORT 8       // u64, index of the import that was called
#define SHIM_MAILBOX_INTEGERS 16    // u64[6], %rdi %rsi %rdx %rcx %r8 %r9
#define SHIM_MAILBOX_RESULTS 16     // u64[2], %rax and %rdx
#define SHIM_MAILBOX_RESULT_VECTOR 32 // u64, the low half of %xmm0
#define SHIM_MAILBOX_VECTORS 64     // u64[8], the low halves of %xmm0 to %xmm7
#define SHIM_MAILBOX_STACK_POINTER 128 // u64, %rsp at the import's entry
#define SHIM_MAILBOX_BATCH_FRAME 136 // u64, the address of the next call's frame
#define SHIM_MAILBOX_BATCH_COUNT 144 // u32, calls of the batch that are left
#define SHIM_MAILBOX_BATCH_DONE 148  // u32, calls of the batch that have returned
#define SHIM_MAILBOX_CALL_POLLS 152  // u32, how often the guest looks for the next call before it leaves; at least 1
#define SHIM_MAILBOX_HOST_CALL_POLLS 156 // u32, how often it looks for the answer of a host call; at least 1
#define SHIM_MAILBOX_BATCH_FUNCTION 160 // u64, the function of the batch
#define SHIM_MAILBOX_SCRATCH 168    // u64, the trampoline's; 0 whenever it is not at work
#define SHIM_MAILBOX_STACK 192      // u64[SHIM_STACK_ARGUMENTS_MAXIMUM]
#define SHIM_STACK_ARGUMENTS_MAXIMUM 128

// A call of a batch, in the argument arena: its results, and what the mailbox has from its integers to its vectors.
#define SHIM_FRAME_RESULTS 0
#define SHIM_FRAME_RESULT_VECTOR 16
#define SHIM_FRAME_INTEGERS 24
#define SHIM_FRAME_VECTORS 72
#define SHIM_FRAME_SIZE 136

#endif
