/* Lines for the host's logger: of every level, many at once, from anywhere, and around other ends of a call. */
#include "microvm.h"

void host_event(int64_t number);

void log_line(int32_t level, const char *text, size_t length) {
    microvm_log(level, text, length);
}

void log_at(int32_t level, uint64_t address, uint64_t length) {
    microvm_log(level, (const char *)address, length);
}

/* "line 0", "line 1" and so on. */
void log_lines(int32_t level, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        microvm_log_format(level, "line %lld", (long long)i);
}

/* As many host calls that say the same, without the work of writing it down. */
void log_same_line(int32_t level, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        microvm_log(level, "again", 5);
}

/* One formatted line of this many bytes and a half more. */
void log_long_line(int32_t level, int64_t length) {
    microvm_log_format(level, "%0*d", (int)(length + length / 2), 7);
}

void log_and_trap(const char *text, size_t length) {
    microvm_log(MICROVM_LOG_ERROR, text, length);
    __builtin_trap();
}

/* A line before and after a host function has been asked. */
void log_around_event(int64_t number) {
    microvm_log_format(MICROVM_LOG_INFO, "before %lld", (long long)number);
    host_event(number);
    microvm_log_format(MICROVM_LOG_INFO, "after %lld", (long long)number);
}

int64_t twice(int64_t value) {
    return 2 * value;
}

/* What the host's function does is its own affair: it may call `twice`. */
int64_t event_then_twice(int64_t number) {
    host_event(number);
    return 2 * number;
}

void trap(void) {
    __builtin_trap();
}

void spin(void) {
    for (volatile int64_t i = 0;; i++) {
    }
}
