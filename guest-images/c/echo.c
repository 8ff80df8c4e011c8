/* Strings and bytes in both directions, and state that outlives a call. */
#include "microvm.h"

struct microvm_span echo(const uint8_t *bytes, size_t length) {
    return (struct microvm_span){(void *)bytes, length};
}

/* Reverses the bytes (not the characters), in memory of the guest's own. */
struct microvm_span reverse(const uint8_t *bytes, size_t length) {
    static uint8_t *reversed;
    free(reversed);
    reversed = malloc(length ? length : 1);
    if (!reversed)
        abort();
    for (size_t i = 0; i < length; i++)
        reversed[i] = bytes[length - 1 - i];
    return (struct microvm_span){reversed, length};
}

int64_t byte_length(const uint8_t *bytes, size_t length) {
    (void)bytes;
    return (int64_t)length;
}

uint64_t byte_sum(const uint8_t *bytes, size_t length) {
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += bytes[i];
    return sum;
}

/* Two strings at once. */
struct microvm_span concatenate(const uint8_t *left, size_t left_length, const uint8_t *right, size_t right_length) {
    static uint8_t *joined;
    free(joined);
    joined = malloc(left_length + right_length + 1);
    if (!joined)
        abort();
    memcpy(joined, left, left_length);
    memcpy(joined + left_length, right, right_length);
    return (struct microvm_span){joined, left_length + right_length};
}

/* Strings between numbers: the places of pointer and length among other arguments. */
int64_t mixed(int64_t before, const uint8_t *bytes, size_t length, double between, const uint8_t *more,
              size_t more_length, int64_t after) {
    int64_t sum = (int64_t)byte_sum(bytes, length), more_sum = (int64_t)byte_sum(more, more_length);
    return before + 2 * sum + 3 * (int64_t)between + 4 * more_sum + 5 * after;
}

/* Takes many bytes (24 KiB in the benchmark) and gives back 8 KiB: every third byte of the first 24 KiB. */
struct microvm_span thin_out(const uint8_t *bytes, size_t length) {
    static uint8_t result[8192];
    size_t count = length / 3 < sizeof result ? length / 3 : sizeof result;
    for (size_t i = 0; i < count; i++)
        result[i] = bytes[3 * i];
    return (struct microvm_span){result, count};
}

static int64_t counter = 10;

int64_t add_to_static(int64_t amount) { return counter += amount; }
int64_t get_static(void) { return counter; }

/* One MiB that is not in the file. */
static uint8_t zeros[1 << 20];

uint64_t sum_of_zeros(void) { return byte_sum(zeros, sizeof zeros); }
void set_zero(uint64_t at, uint8_t byte) { zeros[at % sizeof zeros] = byte; }

/* Results that a host must not believe. */
struct microvm_span null_span(void) { return (struct microvm_span){NULL, 0}; }
struct microvm_span null_span_with_length(void) { return (struct microvm_span){NULL, 8}; }
struct microvm_span wild_span(uint64_t base, uint64_t length) {
    return (struct microvm_span){(void *)base, length};
}
struct microvm_span span_beyond_its_end(void) { return (struct microvm_span){zeros, 1ull << 40}; }
struct microvm_span span_that_wraps(void) { return (struct microvm_span){zeros, UINT64_MAX}; }
struct microvm_span not_utf8(void) { return (struct microvm_span){"\xff\xfe ok \xc0\x80", 8}; }
struct microvm_span constant(void) { return (struct microvm_span){"constant", 8}; }
