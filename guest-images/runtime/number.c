/* Numbers from text, and searching and sorting. */
#include "runtime.h"

static bool is_space(char character) {
    return character == ' ' || (character >= '\t' && character <= '\r');
}

static int digit_value(char character) {
    if (character >= '0' && character <= '9')
        return character - '0';
    character |= 32;
    return character >= 'a' && character <= 'z' ? character - 'a' + 10 : 99;
}

/* The magnitude at `text`; `negative` and `end` are set, `overflow` when it exceeds 64 bits. */
static uint64_t parse(const char *text, char **end, int base, bool *negative, bool *overflow) {
    const char *at = text;
    *negative = *overflow = false;
    while (is_space(*at))
        at++;
    if (*at == '+' || *at == '-')
        *negative = *at++ == '-';
    if ((base == 0 || base == 16) && at[0] == '0' && (at[1] | 32) == 'x' && digit_value(at[2]) < 16)
        at += 2, base = 16;
    else if (base == 0)
        base = *at == '0' ? 8 : 10;
    const char *digits = at;
    uint64_t value = 0;
    for (; digit_value(*at) < base; at++)
        if (__builtin_mul_overflow(value, (uint64_t)base, &value)
            || __builtin_add_overflow(value, (uint64_t)digit_value(*at), &value))
            *overflow = true;
    if (end)
        *end = (char *)(at == digits ? text : at);
    return value;
}

long strtol(const char *restrict text, char **restrict end, int base) {
    bool negative, overflow;
    uint64_t value = parse(text, end, base, &negative, &overflow);
    if (overflow || value > (uint64_t)INT64_MAX + negative) {
        errno = ERANGE;
        return negative ? INT64_MIN : INT64_MAX;
    }
    return (long)(negative ? -value : value);
}

unsigned long strtoul(const char *restrict text, char **restrict end, int base) {
    bool negative, overflow;
    uint64_t value = parse(text, end, base, &negative, &overflow);
    if (overflow) {
        errno = ERANGE;
        return UINT64_MAX;
    }
    return negative ? -value : value;
}

long long strtoll(const char *restrict text, char **restrict end, int base) { return strtol(text, end, base); }
unsigned long long strtoull(const char *restrict text, char **restrict end, int base) {
    return strtoul(text, end, base);
}
int atoi(const char *text) { return (int)strtol(text, NULL, 10); }
long atol(const char *text) { return strtol(text, NULL, 10); }
int abs(int value) { return value < 0 ? -value : value; }
long labs(long value) { return value < 0 ? -value : value; }

void *bsearch(const void *key, const void *elements, size_t count, size_t size,
              int (*compare)(const void *, const void *)) {
    const uint8_t *base = elements;
    while (count) {
        const uint8_t *middle = base + count / 2 * size;
        int order = compare(key, middle);
        if (order == 0)
            return (void *)middle;
        if (order > 0) {
            base = middle + size;
            count = (count - 1) / 2;
        } else {
            count /= 2;
        }
    }
    return NULL;
}

static void swap(uint8_t *left, uint8_t *right, size_t size) {
    for (; size; size--, left++, right++) {
        uint8_t byte = *left;
        *left = *right;
        *right = byte;
    }
}

static void sift(uint8_t *base, size_t root, size_t count, size_t size, int (*compare)(const void *, const void *)) {
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(base + child * size, base + (child + 1) * size) < 0)
            child++;
        if (compare(base + root * size, base + child * size) >= 0)
            return;
        swap(base + root * size, base + child * size, size);
    }
}

/* A heap sort: no memory, no recursion, no bad case. */
void qsort(void *elements, size_t count, size_t size, int (*compare)(const void *, const void *)) {
    uint8_t *base = elements;
    for (size_t root = count / 2; root-- > 0;)
        sift(base, root, count, size, compare);
    for (size_t last = count; last-- > 1;) {
        swap(base, base + last * size, size);
        sift(base, 0, last, size, compare);
    }
}
