/* Exercises of the runtime: the allocator, formatted output, and memory by the page. Where a function returns a
 * number of failures, 0 is what it should be. */
#include "microvm.h"

/* MARK: The allocator */

static uint64_t seed = 1;
static uint32_t next_random(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

enum { slots = 256 };

struct slot {
    uint8_t *block;
    size_t size;
    uint8_t mark;
};

static bool is_intact(const struct slot *slot) {
    for (size_t i = 0; i < slot->size; i++)
        if (slot->block[i] != slot->mark)
            return false;
    return (uintptr_t)slot->block % 16 == 0;
}

/* Random malloc, calloc, realloc, aligned_alloc and free, each block checked for what was written into it. */
int64_t exercise_allocator(int64_t steps, uint64_t from) {
    static struct slot table[slots];
    int64_t failures = 0;
    seed = from;
    for (int64_t step = 0; step < steps; step++) {
        struct slot *slot = &table[next_random() % slots];
        size_t size = next_random() % 8 == 0 ? next_random() % 65536 : next_random() % 512;
        uint8_t mark = (uint8_t)next_random();
        if (slot->block)
            failures += !is_intact(slot);
        switch (next_random() % 6) {
        case 0: case 1:
            free(slot->block);
            slot->block = NULL;
            slot->size = 0;
            continue;
        case 2:
            free(slot->block);
            slot->block = calloc(1, size + 1);
            for (size_t i = 0; slot->block && i < size + 1; i++)
                failures += slot->block[i] != 0;
            break;
        case 3: {
            size_t alignment = (size_t)16 << next_random() % 9;
            free(slot->block);
            slot->block = aligned_alloc(alignment, size + 1);
            failures += slot->block && (uintptr_t)slot->block % alignment != 0;
            break;
        }
        case 4: {
            uint8_t *moved = realloc(slot->block, size + 1);
            size_t kept = slot->size < size + 1 ? slot->size : size + 1;
            struct slot old = {moved, moved ? kept : 0, slot->mark};
            failures += moved && !is_intact(&old);
            slot->block = moved;
            break;
        }
        default:
            free(slot->block);
            slot->block = malloc(size + 1);
            break;
        }
        failures += !slot->block;
        slot->size = slot->block ? size + 1 : 0;
        slot->mark = mark;
        if (slot->block)
            memset(slot->block, mark, slot->size);
    }
    for (int i = 0; i < slots; i++) {
        failures += table[i].block && !is_intact(&table[i]);
        free(table[i].block);
        table[i] = (struct slot){0};
    }
    return failures;
}

/* Takes blocks of `size` bytes until there are none left, frees them all, and returns how many there were. Everything
 * freed is merged again: a second time gives the same number. */
int64_t exhaust_heap(size_t size) {
    void **chain = NULL;
    int64_t count = 0;
    for (void **block; (block = malloc(size < 8 ? 8 : size)); count++) {
        *block = chain;
        chain = block;
    }
    while (chain) {
        void **next = *chain;
        free(chain);
        chain = next;
    }
    return count;
}

/* The largest block there is, in bytes, to the nearest 16 below. */
uint64_t largest_block(void) {
    uint64_t below = 0, above = microvm_heap().length + 16;
    while (above - below > 16) {
        uint64_t middle = below + (above - below) / 2;
        void *block = malloc(middle);
        free(block);
        *(block ? &below : &above) = middle;
    }
    return below;
}

/* What asks for too much gets null, and errno says why. */
int64_t refused_allocations(void) {
    int64_t failures = 0;
    void *volatile block;
    errno = 0;
    block = malloc(SIZE_MAX);
    failures += block != NULL || errno != ENOMEM;
    block = malloc(PTRDIFF_MAX);
    failures += block != NULL;
    block = calloc(SIZE_MAX / 2, 3);
    failures += block != NULL;
    block = calloc(1ull << 32, 1ull << 32);
    failures += block != NULL;
    block = aligned_alloc(1ull << 62, 1);
    failures += block != NULL;
    block = aligned_alloc(4096, SIZE_MAX - 4096);
    failures += block != NULL;
    void *kept = malloc(100);
    block = realloc(kept, SIZE_MAX - 8);
    failures += block != NULL || kept == NULL;
    free(kept);
    void *aligned;
    failures += posix_memalign(&aligned, 3, 8) != EINVAL;
    failures += posix_memalign(&aligned, 4096, 8) != 0 || (uintptr_t)aligned % 4096 != 0;
    free(aligned);
    free(NULL);
    return failures;
}

/* A block freed twice: aborts. */
void free_twice(void) {
    void *volatile block = malloc(64), *volatile other = malloc(64);
    free(block);
    free(block);
    free(other);
}

void free_wild(uint64_t address) { free((void *)address); }

/* MARK: Pages */

static uint8_t *pages;

/* Writes one byte into each of `count` pages of the heap, and returns the sum of what was there. */
uint64_t touch_pages(uint64_t count) {
    uint64_t sum = 0;
    if (!pages)
        pages = microvm_heap().base;
    for (uint64_t i = 0; i < count; i++) {
        sum += pages[i * 4096];
        pages[i * 4096] = 1;
    }
    return sum;
}

uint64_t read_pages(uint64_t count) {
    uint64_t sum = 0;
    if (!pages)
        pages = microvm_heap().base;
    for (uint64_t i = 0; i < count; i++)
        sum += ((volatile uint8_t *)pages)[i * 4096];
    return sum;
}

/* Copies within memory of its own, so many bytes, so many times: for measurements. */
uint64_t copy_bytes(uint64_t length, uint64_t times) {
    uint8_t *from = calloc(1, length), *to = malloc(length);
    if (!from || !to)
        abort();
    for (uint64_t i = 0; i < times; i++) {
        from[i % length] = (uint8_t)i;
        memcpy(to, from, length);
    }
    uint64_t last = to[(times - 1) % length];
    free(from);
    free(to);
    return last;
}

/* MARK: memcpy and its family, against the obvious loop */

int64_t exercise_memory_functions(void) {
    static uint8_t left[512], right[512], expected[512];
    int64_t failures = 0;
    for (size_t length = 0; length <= 200; length++) {
        for (size_t from = 0; from < 40; from += 3) {
            for (size_t to = 0; to < 40; to += 5) {
                for (size_t i = 0; i < sizeof left; i++)
                    left[i] = right[i] = expected[i] = (uint8_t)(i * 7 + length);
                uint8_t moved[256];
                for (size_t i = 0; i < length; i++)
                    moved[i] = left[from + i];
                for (size_t i = 0; i < length; i++)
                    expected[to + i] = moved[i];
                memmove(left + to, left + from, length);
                memcpy(right + to, moved, length);
                failures += memcmp(left, expected, sizeof left) != 0;
                failures += memcmp(right, expected, sizeof right) != 0;
            }
        }
        memset(left, 0, sizeof left);
        memset(left + 9, 0xa5, length);
        for (size_t i = 0; i < sizeof left; i++)
            failures += left[i] != (i >= 9 && i < 9 + length ? 0xa5 : 0);
        failures += length && memchr(left, 0xa5, sizeof left) != left + 9;
        uint8_t *last = left + 9 + length - 1;
        memcpy(right, left, sizeof left);
        failures += memcmp(left, right, sizeof left) != 0;
        if (length) {
            *last = 0xa6;
            failures += memcmp(left, right, sizeof left) <= 0 || memcmp(right, left, sizeof left) >= 0;
        }
    }
    failures += strcmp("abc", "abc") != 0 || strcmp("abc", "abd") >= 0 || strcmp("b", "abc") <= 0;
    failures += strncmp("abcx", "abcy", 3) != 0 || strncmp("ab\xff", "ab", 9) <= 0;
    failures += strlen("") != 0 || strlen("twelve bytes") != 12;
    const char *text = "a/b/c";
    failures += strchr(text, '/') != text + 1 || strrchr(text, '/') != text + 3 || strchr(text, 0) != text + 5;
    failures += strstr(text, "b/c") != text + 2 || strstr(text, "x") != NULL;
    return failures;
}

static int compare_integers(const void *left, const void *right) {
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    return (a > b) - (a < b);
}

int64_t exercise_sorting(uint64_t count) {
    int32_t *numbers = malloc(count * sizeof *numbers + 1);
    int64_t failures = 0;
    if (!numbers)
        abort();
    for (uint64_t i = 0; i < count; i++)
        numbers[i] = (int32_t)next_random();
    qsort(numbers, count, sizeof *numbers, compare_integers);
    for (uint64_t i = 1; i < count; i++)
        failures += numbers[i - 1] > numbers[i];
    for (uint64_t i = 0; i < count; i += 7) {
        int32_t *found = bsearch(&numbers[i], numbers, count, sizeof *numbers, compare_integers);
        failures += !found || *found != numbers[i];
    }
    free(numbers);
    return failures;
}

/* MARK: Formatted output */

static char formatted[4096];
static struct microvm_span result(int length) {
    return (struct microvm_span){formatted, length < 0 ? 0 : (size_t)length};
}

/* Lines of every conversion; what they should be is known to the tests. */
struct microvm_span format_integers(void) {
    int length = snprintf(formatted, sizeof formatted,
                          "%d|%5d|%-5d|%05d|%+d|% d|%.3d|%i\n"
                          "%u|%x|%X|%#x|%#o|%o|%#X|%08x\n"
                          "%hhd|%hd|%ld|%lld|%zu|%jd|%td\n"
                          "%c|%3c|%-3c|%s|%.2s|%6s|%-6s|%%\n"
                          "%p|%p|%*d|%-*d|%.*d|%.0d|%#.0o\n"
                          "%lld|%llu|%+08.3d\n",
                          -42, 42, 42, 42, 42, 42, 7, 0, 42u, 48879u, 48879u, 48879u, 8u, 8u, 48879u, 48879u, 300,
                          70000, 1234567890123l, -1234567890123ll, (size_t)99, (intmax_t)-5, (ptrdiff_t)6, 'a', 'b',
                          'c', "text", "text", "text", "text", (void *)0x1234, (void *)0, 6, 42, 6, 42, 4, 42, 0, 0,
                          (long long)INT64_MIN, (unsigned long long)UINT64_MAX, 42);
    return result(length);
}

struct microvm_span format_floating(void) {
    int length = snprintf(formatted, sizeof formatted,
                          "%f|%.0f|%.2f|%10.3f|%-10.1f|%010.2f|%+f\n"
                          "%e|%.0e|%.3E|%g|%g|%g|%G\n"
                          "%.17g|%.20f|%g|%g|%#g|%.1f|%.1f\n"
                          "%f|%e|%f|%F|%g\n"
                          "%.0f|%.0f|%.0f|%#.0f|%.3g|%.10g\n",
                          3.14159, 2.5, 1.005, -3.14159, 2.25, -1.5, 1.0, 12345.678, 15.0, 0.000123456, 100000.0,
                          1000000.0, 0.0001, 0.00001, 0.1, 0.1, 1e100, 123456789.0, 1.0, 0.25, 0.35, 1e22,
                          5e-324, __builtin_inf(), -__builtin_inf(), __builtin_nan(""), 0.5, 1.5, 99.5, 3.0, 9.9996,
                          1.0 / 3.0);
    return result(length);
}

/* One double with a format of the host's; the format must have one conversion for a double. */
struct microvm_span format_double(const char *format, size_t length, double value) {
    char terminated[64] = {0};
    memcpy(terminated, format, length < sizeof terminated - 1 ? length : sizeof terminated - 1);
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wformat-nonliteral"
#pragma clang diagnostic ignored "-Wformat-security"
    return result(snprintf(formatted, sizeof formatted, terminated, value));
#pragma clang diagnostic pop
}

/* Truncation: returns the length that would have been, and leaves what fitted. */
int64_t format_truncated(size_t size) {
    char text[17] = "################";
    int length = snprintf(text, size < 16 ? size : 16, "%s", "0123456789abcdef");
    bool terminated = size == 0 ? text[0] == '#' : text[(size < 16 ? size : 16) - 1] == 0;
    return terminated ? length : -1;
}

int64_t parse_number(const char *text, size_t length, int32_t base) {
    char terminated[64] = {0};
    memcpy(terminated, text, length < sizeof terminated - 1 ? length : sizeof terminated - 1);
    return strtoll(terminated, NULL, base);
}

double parse_double(const char *text, size_t length) {
    char terminated[1024] = {0};
    memcpy(terminated, text, length < sizeof terminated - 1 ? length : sizeof terminated - 1);
    return strtod(terminated, NULL);
}

/* One printf that is much longer than the buffer it goes through. */
void print_long_line(int32_t width) { printf("%*d\n", width, 7); }

void fail_assertion(int32_t value) { assert(value == 42); }
void call_abort(void) { abort(); }
void call_exit(int32_t status) { exit(status); }
