/* What a program asks of its process: its end, its error number, time, random bytes. */
#include "runtime.h"

static int error_number;

int *__errno_location(void) {
    return &error_number;
}

char *strerror(int error) {
    static char text[32];
    switch (error) {
    case 0: return "Success";
    case ENOMEM: return "Cannot allocate memory";
    case EINVAL: return "Invalid argument";
    case ERANGE: return "Numerical result out of range";
    case ENOSYS: return "Function not implemented";
    }
    snprintf(text, sizeof text, "Error %d", error);
    return text;
}

void runtime_abort(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    microvm_abort(text, strlen(text));
}

void abort(void) { runtime_abort("abort()"); }
void exit(int status) { runtime_abort("exit(%d)", status); }
__attribute__((noreturn)) void _exit(int status) { runtime_abort("exit(%d)", status); }
int atexit(void (*function)(void)) { return (void)function, 0; } /* a guest has no end to run it at */
int __cxa_atexit(void (*function)(void *), void *argument, void *module) {
    return (void)function, (void)argument, (void)module, 0;
}

void __assert_fail(const char *expression, const char *file, unsigned int line, const char *function) {
    runtime_abort("%s:%u: %s: assertion failed: %s", file, line, function, expression);
}

__attribute__((noreturn)) void __chk_fail(void) { runtime_abort("a buffer is too small for what is copied into it"); }

#define CHECKED(length, room) ((length) > (room) ? __chk_fail() : (void)0)

/* The variants that code compiled with _FORTIFY_SOURCE calls. */
void *__memcpy_chk(void *to, const void *from, size_t length, size_t room) {
    return CHECKED(length, room), memcpy(to, from, length);
}
void *__memmove_chk(void *to, const void *from, size_t length, size_t room) {
    return CHECKED(length, room), memmove(to, from, length);
}
void *__memset_chk(void *to, int byte, size_t length, size_t room) {
    return CHECKED(length, room), memset(to, byte, length);
}
void explicit_bzero(void *to, size_t length);
void __explicit_bzero_chk(void *to, size_t length, size_t room) { CHECKED(length, room), explicit_bzero(to, length); }
char *__strcpy_chk(char *to, const char *from, size_t room) {
    return CHECKED(strlen(from) + 1, room), strcpy(to, from);
}
char *__strncpy_chk(char *to, const char *from, size_t limit, size_t room) {
    return CHECKED(limit, room), strncpy(to, from, limit);
}
char *__strcat_chk(char *to, const char *from, size_t room) {
    return CHECKED(strlen(to) + strlen(from) + 1, room), strcat(to, from);
}

void arc4random_buf(void *bytes, size_t length) { microvm_random(bytes, length); }

uint32_t arc4random(void) {
    uint32_t value;
    microvm_random(&value, sizeof value);
    return value;
}

int getentropy(void *bytes, size_t length) { return microvm_random(bytes, length), 0; }
ptrdiff_t getrandom(void *bytes, size_t length, unsigned flags) {
    return (void)flags, microvm_random(bytes, length), (ptrdiff_t)length;
}

struct seconds_and_nanoseconds {
    long seconds, fraction;
};

int clock_gettime(int clock, struct seconds_and_nanoseconds *time) {
    uint64_t now = microvm_clock(clock == 0 ? MICROVM_CLOCK_REALTIME : MICROVM_CLOCK_MONOTONIC);
    *time = (struct seconds_and_nanoseconds){(long)(now / 1000000000), (long)(now % 1000000000)};
    return 0;
}

int gettimeofday(struct seconds_and_nanoseconds *time, void *zone) {
    (void)zone;
    clock_gettime(0, time);
    time->fraction /= 1000; /* microseconds here */
    return 0;
}

long time(long *seconds) {
    long now = (long)(microvm_clock(MICROVM_CLOCK_REALTIME) / 1000000000);
    if (seconds)
        *seconds = now;
    return now;
}

long clock(void) { return (long)(microvm_clock(MICROVM_CLOCK_MONOTONIC) / 1000); }

char *getenv(const char *name) { return (void)name, NULL; }
char *secure_getenv(const char *name) { return (void)name, NULL; }
int getpid(void) { return 1; }
