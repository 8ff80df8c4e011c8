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

#define SHIM_OWNER_HOST 0
#define SHIM_OWNER_GUEST 1

#define SHIM_COMMAND_RETURN 0
#define SHIM_COMMAND_CALL 1

// Offsets in the mailbox.
#define SHIM_MAILBOX_OWNER 0        // u32, changes hands last: whose turn it is
#define SHIM_MAILBOX_COMMAND 4      // u32, host to thunk: return, or call a function first
#define SHIM_MAILBOX_FUNCTION 8     // u64, the function to call
#define SHIM_MAILBOX_STACK_COUNT 16 // u32, words at SHIM_MAILBOX_STACK
#define SHIM_MAILBOX_BATCH_COUNT 20 // u32, calls of a batch that are left; 0 for a call by itself
#define SHIM_MAILBOX_IMPORT 24      // u64, index of the import that was called
#define SHIM_MAILBOX_STACK_POINTER 32 // u64, %rsp at the import's entry
#define SHIM_MAILBOX_RESULTS 40     // u64[2], %rax and %rdx
#define SHIM_MAILBOX_RESULT_VECTOR 56 // u64, the low half of %xmm0
#define SHIM_MAILBOX_INTEGERS 64    // u64[6], %rdi %rsi %rdx %rcx %r8 %r9
#define SHIM_MAILBOX_VECTORS 112    // u64[8], the low halves of %xmm0 to %xmm7
#define SHIM_MAILBOX_STACK 192      // u64[SHIM_STACK_ARGUMENTS_MAXIMUM]
#define SHIM_STACK_ARGUMENTS_MAXIMUM 128
#define SHIM_MAILBOX_BATCH_FRAME 1216 // u64, the address of the next call's frame
#define SHIM_MAILBOX_BATCH_DONE 1224  // u32, calls of the batch that have returned

// A call of a batch, in the argument arena: what the mailbox has from its results to its vectors, in the same order.
#define SHIM_FRAME_RESULTS 0
#define SHIM_FRAME_RESULT_VECTOR 16
#define SHIM_FRAME_INTEGERS 24
#define SHIM_FRAME_VECTORS 72
#define SHIM_FRAME_SIZE 136

#endif
