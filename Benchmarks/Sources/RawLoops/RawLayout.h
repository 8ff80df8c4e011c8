#ifndef RAW_LAYOUT_H
#define RAW_LAYOUT_H

// Guest addresses, virtual and physical alike. The few things that a first call touches lie close together, because
// each page more costs a page fault.
#define RAW_MEMORY_SIZE 0x200000
#define RAW_PML4 0x1000
#define RAW_PDPT 0x2000
#define RAW_PAGE_DIRECTORY 0x3000
#define RAW_TASK_STATE 0x4000
#define RAW_TRAMPOLINE 0x4100
#define RAW_MAILBOX 0x4800
#define RAW_IMAGE 0x10000
#define RAW_ARENA 0x100000
#define RAW_STACK_TOP 0x200000

// The mailbox's words: one cache line.
#define RAW_FUNCTION 0
#define RAW_FIRST 8
#define RAW_SECOND 16
#define RAW_RESULT 24
#define RAW_RESULT_LENGTH 32
#define RAW_HOST_FIRST 40
#define RAW_HOST_SECOND 48
#define RAW_HOST_RESULT 56

// The mailbox of calls for which both sides poll: one cache line too, in a page without code, because a processor that
// sees its code's surroundings written to may fetch that code anew. A host call has the words of a call's arguments and
// of its result, which are not needed while the guest waits.
#define RAW_HOT_MAILBOX 0x5000
#define RAW_HOT_TURN 0
#define RAW_HOT_FUNCTION 8
#define RAW_HOT_FIRST 16
#define RAW_HOT_SECOND 24
#define RAW_HOT_RESULT 32
#define RAW_HOT_RESULT_LENGTH 40

// Whose turn it is: the host's, the guest having nothing to do or waiting for a host call's result, or the guest's, to
// do what there is or to leave by an exit.
#define RAW_HOT_IDLE 0
#define RAW_HOT_HOST_CALL 1
#define RAW_HOT_GUEST 2
#define RAW_HOT_LEAVE 3

#define RAW_RETURN_PORT 0x10
#define RAW_HOST_PORT 0x11

#endif
