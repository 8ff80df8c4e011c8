/* Thread-local variables with and without initial values. Those that other objects may see go by way of
 * __tls_get_addr, those of the initial-exec model by an offset from the FS base. */
#include "microvm.h"

#define INITIAL_EXEC __attribute__((tls_model("initial-exec")))

_Thread_local int64_t dynamic_initialized = 7;
_Thread_local int64_t dynamic_zero;
static _Thread_local INITIAL_EXEC int64_t direct_initialized = 11;
static _Thread_local INITIAL_EXEC int64_t direct_zero;
static _Thread_local _Alignas(64) INITIAL_EXEC uint8_t aligned[64];

int64_t get_dynamic_initialized(void) { return dynamic_initialized; }
int64_t get_dynamic_zero(void) { return dynamic_zero; }
int64_t get_direct_initialized(void) { return direct_initialized; }
int64_t get_direct_zero(void) { return direct_zero; }

/* Adds to all four and returns their sum. */
int64_t add_to_all(int64_t amount) {
    dynamic_initialized += amount;
    dynamic_zero += amount;
    direct_initialized += amount;
    direct_zero += amount;
    return dynamic_initialized + dynamic_zero + direct_initialized + direct_zero;
}

/* 0 when the variable that wants a multiple of 64 bytes has one. */
uint64_t misalignment(void) { return (uint64_t)(uintptr_t)aligned % 64; }

/* The word at FS:0 is the FS base itself, and the stack protector's canary is at FS:0x28. */
bool self_pointer_is_right(void) {
    uint64_t self, canary;
    __asm__("movq %%fs:0, %0" : "=r"(self));
    __asm__("movq %%fs:0x28, %0" : "=r"(canary));
    return *(uint64_t *)(self + 0x28) == canary;
}
uint64_t canary(void) {
    uint64_t canary;
    __asm__("movq %%fs:0x28, %0" : "=r"(canary));
    return canary;
}
