#define _GNU_SOURCE
#include "SystemCallCounter.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static _Thread_local uint64_t timer_settings;

uint64_t timer_settings_of_thread(void) { return timer_settings; }

void *stack_end_of_thread(void) {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes)) return NULL;
    void *end = NULL;
    size_t size;
    if (pthread_attr_getstack(&attributes, &end, &size)) end = NULL;
    pthread_attr_destroy(&attributes);
    return end;
}

// As the C library's: six arguments are passed on whatever the number, and the kernel looks at those it needs.
long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long arguments[6];
    for (int i = 0; i < 6; i++) arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_timer_settime) timer_settings++;
    register long fourth __asm__("r10") = arguments[3];
    register long fifth __asm__("r8") = arguments[4];
    register long sixth __asm__("r9") = arguments[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]), "r"(fourth), "r"(fifth),
                       "r"(sixth)
                     : "rcx", "r11", "memory");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static atomic_uint_fast64_t changes;

uint64_t mapping_changes(void) { return atomic_load(&changes); }

#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
bool mapping_changes_are_counted(void) { return false; }
#else
bool mapping_changes_are_counted(void) { return true; }

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset) {
    if (flags & MAP_FIXED) atomic_fetch_add(&changes, 1);
    return (void *)syscall(SYS_mmap, address, size, (long)protection, (long)flags, (long)file, offset);
}

int munmap(void *address, size_t size) {
    atomic_fetch_add(&changes, 1);
    return (int)syscall(SYS_munmap, address, size);
}

int mprotect(void *address, size_t size, int protection) {
    atomic_fetch_add(&changes, 1);
    return (int)syscall(SYS_mprotect, address, size, (long)protection);
}

int madvise(void *address, size_t size, int advice) {
    if (advice == MADV_DONTNEED) atomic_fetch_add(&changes, 1);
    return (int)syscall(SYS_madvise, address, size, (long)advice);
}
#endif
