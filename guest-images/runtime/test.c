/* The checks of microvm_test.h. Messages are bounded: whatever is compared, a report is one line of readable length. */
#include "microvm_test.h"

#include "runtime.h"

static unsigned failure_count;

void microvm_test_begin(void) { failure_count = 0; }
int microvm_test_end(void) { return failure_count > 255 ? 255 : (int)failure_count; }

void microvm_skip(const char *reason) {
    if (microvm_test_skipped)
        microvm_test_skipped(reason, strlen(reason));
    runtime_abort("skipped: %s", reason);
}

void microvm_test_report(const char *file, size_t file_length, uint32_t line, const char *message,
                         size_t message_length, bool is_last) {
    failure_count++;
    if (microvm_test_failed)
        microvm_test_failed(file, file_length, line, message, message_length, is_last);
    else
        fprintf(stderr, "%.*s:%u: %.*s\n", (int)file_length, file, line, (int)message_length, message);
    if (is_last)
        runtime_abort("%.*s:%u: %.*s", (int)file_length, file, line, (int)message_length, message);
}

__attribute__((format(printf, 2, 3))) static void fail(struct microvm_test_place place, const char *format, ...) {
    char text[1024];
    int length = snprintf(text, sizeof text, "%s(%.300s)", place.check, place.arguments);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + length, sizeof text - (size_t)length, format, arguments);
    va_end(arguments);
    microvm_test_report(place.file, strlen(place.file), place.line, text, strlen(text), place.is_last);
}

void microvm_test_condition(struct microvm_test_place place) { fail(place, " does not hold"); }

/* MARK: Numbers */

static double number(struct microvm_test_value value) {
    if (value.kind == microvm_test_floating)
        return value.number;
    return value.is_negative ? -(double)value.bits : (double)value.bits;
}

static bool holds(enum microvm_test_relation relation, struct microvm_test_value left,
                  struct microvm_test_value right) {
    bool less, equal, greater; /* none of them where a NaN is involved */
    if (left.kind == microvm_test_floating || right.kind == microvm_test_floating) {
        double a = number(left), b = number(right);
        less = a < b, equal = a == b, greater = a > b;
    } else if (left.is_negative != right.is_negative) {
        less = left.is_negative, equal = false, greater = right.is_negative;
    } else {
        less = left.is_negative ? left.bits > right.bits : left.bits < right.bits;
        equal = left.bits == right.bits;
        greater = !less && !equal;
    }
    switch (relation) {
    case microvm_test_equal: return equal;
    case microvm_test_unequal: return !equal;
    case microvm_test_less: return less;
    case microvm_test_less_or_equal: return less || equal;
    case microvm_test_greater: return greater;
    case microvm_test_greater_or_equal: return greater || equal;
    }
    return false;
}

static const char *describe(struct microvm_test_value value, char *text, size_t size) {
    switch (value.kind) {
    case microvm_test_bool: snprintf(text, size, "%s", value.bits ? "true" : "false"); break;
    case microvm_test_floating: snprintf(text, size, "%.17g", value.number); break;
    case microvm_test_pointer: snprintf(text, size, "%p", (void *)(uintptr_t)value.bits); break;
    case microvm_test_integer: {
        const char *sign = value.is_negative ? "-" : "";
        if (value.bits < 10)
            snprintf(text, size, "%s%llu", sign, (unsigned long long)value.bits);
        else
            snprintf(text, size, "%s%llu (%s0x%llx)", sign, (unsigned long long)value.bits, sign,
                     (unsigned long long)value.bits);
    }
    }
    return text;
}

void microvm_test_compare(struct microvm_test_place place, enum microvm_test_relation relation,
                          struct microvm_test_value left, struct microvm_test_value right) {
    static const char *const relations[] = {"is not", "is", "is not less than", "is greater than",
                                            "is not greater than", "is less than"};
    char left_text[64], right_text[64];
    if (holds(relation, left, right))
        return;
    bool unordered = (left.kind == microvm_test_floating && left.number != left.number) ||
                     (right.kind == microvm_test_floating && right.number != right.number);
    fail(place, ": %s %s %s", describe(left, left_text, sizeof left_text),
         unordered ? "cannot be compared with" : relations[relation], describe(right, right_text, sizeof right_text));
}

void microvm_test_near(struct microvm_test_place place, double left, double right, double tolerance) {
    double difference = left > right ? left - right : right - left;
    if (difference <= tolerance || left == right) /* infinities have no difference */
        return;
    fail(place, ": %.17g and %.17g differ by %.17g, more than %.17g", left, right, difference, tolerance);
}

/* MARK: Texts and bytes */

/* Writes at most 40 characters of a string in quotes, from a little before `from` on. */
static const char *quote(const char *string, size_t from, char *text, size_t size) {
    enum { shown = 40, before = 8 };
    if (!string)
        return "null";
    size_t length = 0, start = from > before ? from - before : 0;
    length += (size_t)snprintf(text, size, start ? "…\"" : "\"");
    size_t index = start;
    for (; string[index] && index < start + shown; index++) {
        unsigned char byte = (unsigned char)string[index];
        if (byte == '"' || byte == '\\')
            length += (size_t)snprintf(text + length, size - length, "\\%c", byte);
        else if (byte == '\n')
            length += (size_t)snprintf(text + length, size - length, "\\n");
        else if (byte < ' ' || byte >= 127)
            length += (size_t)snprintf(text + length, size - length, "\\x%02x", byte);
        else
            text[length++] = (char)byte;
    }
    snprintf(text + length, size - length, string[index] ? "\"…" : "\"");
    return text;
}

void microvm_test_strings(struct microvm_test_place place, const char *left, const char *right) {
    char left_text[256], right_text[256];
    if (left == right || (left && right && strcmp(left, right) == 0))
        return;
    size_t same = 0;
    if (left && right)
        while (left[same] && left[same] == right[same])
            same++;
    fail(place, ": %s is not %s", quote(left, same, left_text, sizeof left_text),
         quote(right, same, right_text, sizeof right_text));
}

/* Writes at most 16 bytes in hexadecimal. */
static const char *dump(const uint8_t *bytes, size_t count, char *text) {
    size_t length = 0;
    for (size_t index = 0; index < count && index < 16; index++)
        length += (size_t)snprintf(text + length, 4, "%s%02x", index ? " " : "", bytes[index]);
    return text;
}

void microvm_test_bytes(struct microvm_test_place place, const void *left, const void *right, size_t length) {
    const uint8_t *a = left, *b = right;
    char left_text[64], right_text[64];
    if (!length || a == b)
        return;
    if (!a || !b) {
        fail(place, ": %s is null", a ? "the second" : "the first");
        return;
    }
    if (memcmp(a, b, length) == 0)
        return;
    size_t first = 0;
    while (a[first] == b[first])
        first++;
    fail(place, ": %zu bytes differ from byte %zu on: %s is not %s", length, first,
         dump(a + first, length - first, left_text), dump(b + first, length - first, right_text));
}
