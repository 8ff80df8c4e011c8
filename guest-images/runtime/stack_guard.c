/* The stack protector of code that was compiled for a target without an operating system: it compares with a variable
 * instead of the word at FS:0x28. Linked in only where such code is. */
#include "runtime.h"

uintptr_t __stack_chk_guard;

__attribute__((constructor(0), no_stack_protector)) static void copy_canary(void) {
    __asm__("movq %%fs:0x28, %0" : "=r"(__stack_chk_guard));
}
