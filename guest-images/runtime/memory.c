/* The mem* and str* functions of the C library. Built with -fno-builtin, or the compiler would find a memcpy in here
 * and make it call itself. */
#include "microvm.h"

typedef uint64_t word __attribute__((aligned(1), may_alias));
typedef uint32_t half __attribute__((aligned(1), may_alias));
typedef uint16_t quarter __attribute__((aligned(1), may_alias));
typedef long long vector __attribute__((vector_size(16), aligned(1), may_alias));

/* Everything is loaded before anything is stored, so that this is right for overlapping memory too. */
static inline void move_up_to_32(uint8_t *to, const uint8_t *from, size_t length) {
    if (length >= 16) {
        vector first = *(const vector *)from, last = *(const vector *)(from + length - 16);
        *(vector *)to = first;
        *(vector *)(to + length - 16) = last;
    } else if (length >= 8) {
        word first = *(const word *)from, last = *(const word *)(from + length - 8);
        *(word *)to = first;
        *(word *)(to + length - 8) = last;
    } else if (length >= 4) {
        half first = *(const half *)from, last = *(const half *)(from + length - 4);
        *(half *)to = first;
        *(half *)(to + length - 4) = last;
    } else if (length >= 2) {
        quarter first = *(const quarter *)from, last = *(const quarter *)(from + length - 2);
        *(quarter *)to = first;
        *(quarter *)(to + length - 2) = last;
    } else if (length == 1) {
        *to = *from;
    }
}

/* The last 32 bytes are loaded first, for the same reason: the loop may overwrite them. */
static inline void move_forwards(uint8_t *to, const uint8_t *from, size_t length) {
    vector last0 = *(const vector *)(from + length - 32), last1 = *(const vector *)(from + length - 16);
    uint8_t *end = to + length;
    for (; (size_t)(end - to) > 32; to += 32, from += 32) {
        vector a = *(const vector *)from, b = *(const vector *)(from + 16);
        *(vector *)to = a;
        *(vector *)(to + 16) = b;
    }
    *(vector *)(end - 32) = last0;
    *(vector *)(end - 16) = last1;
}

static inline void move_backwards(uint8_t *to, const uint8_t *from, size_t length) {
    vector first0 = *(const vector *)from, first1 = *(const vector *)(from + 16);
    uint8_t *begin = to;
    while (length > 32) {
        length -= 32;
        vector a = *(const vector *)(from + length), b = *(const vector *)(from + length + 16);
        *(vector *)(to + length) = a;
        *(vector *)(to + length + 16) = b;
    }
    *(vector *)begin = first0;
    *(vector *)(begin + 16) = first1;
}

void *memcpy(void *restrict destination, const void *restrict source, size_t length) {
    if (length <= 32)
        move_up_to_32(destination, source, length);
    else
        move_forwards(destination, source, length);
    return destination;
}

void *memmove(void *destination, const void *source, size_t length) {
    if (length <= 32)
        move_up_to_32(destination, source, length);
    else if ((uintptr_t)destination - (uintptr_t)source >= length)
        move_forwards(destination, source, length);
    else
        move_backwards(destination, source, length);
    return destination;
}

void *memset(void *destination, int byte, size_t length) {
    uint8_t *to = destination;
    uint64_t pattern = 0x0101010101010101u * (uint8_t)byte;
    if (length >= 16) {
        vector block = {(long long)pattern, (long long)pattern};
        uint8_t *end = to + length;
        for (; (size_t)(end - to) > 16; to += 16)
            *(vector *)to = block;
        *(vector *)(end - 16) = block;
    } else if (length >= 8) {
        *(word *)to = pattern;
        *(word *)(to + length - 8) = pattern;
    } else if (length >= 4) {
        *(half *)to = (uint32_t)pattern;
        *(half *)(to + length - 4) = (uint32_t)pattern;
    } else {
        for (size_t i = 0; i < length; i++)
            to[i] = (uint8_t)byte;
    }
    return destination;
}

int memcmp(const void *left, const void *right, size_t length) {
    const uint8_t *a = left, *b = right;
    for (; length >= 8 && *(const word *)a == *(const word *)b; length -= 8)
        a += 8, b += 8;
    for (; length; length--, a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}

int bcmp(const void *left, const void *right, size_t length) {
    return memcmp(left, right, length);
}

void *memchr(const void *bytes, int byte, size_t length) {
    const uint8_t *at = bytes;
    for (; length; length--, at++)
        if (*at == (uint8_t)byte)
            return (void *)at;
    return NULL;
}

void *memrchr(const void *bytes, int byte, size_t length) {
    const uint8_t *at = bytes;
    while (length--)
        if (at[length] == (uint8_t)byte)
            return (void *)(at + length);
    return NULL;
}

void explicit_bzero(void *destination, size_t length) {
    memset(destination, 0, length);
    __asm__ volatile("" : : "r"(destination) : "memory"); /* the stores count, even if nobody reads them */
}

size_t strlen(const char *text) {
    const char *at = text;
    while (*at)
        at++;
    return (size_t)(at - text);
}

size_t strnlen(const char *text, size_t limit) {
    size_t length = 0;
    while (length < limit && text[length])
        length++;
    return length;
}

int strcmp(const char *left, const char *right) {
    return strncmp(left, right, SIZE_MAX);
}

/* There is one locale, and its order is that of the bytes. */
int strcoll(const char *left, const char *right) { return strcmp(left, right); }

int strncmp(const char *left, const char *right, size_t limit) {
    for (; limit; limit--, left++, right++) {
        uint8_t a = (uint8_t)*left, b = (uint8_t)*right;
        if (a != b)
            return a - b;
        if (!a)
            break;
    }
    return 0;
}

char *strcpy(char *restrict destination, const char *restrict source) {
    return memcpy(destination, source, strlen(source) + 1);
}

char *stpcpy(char *restrict destination, const char *restrict source) {
    size_t length = strlen(source);
    memcpy(destination, source, length + 1);
    return destination + length;
}

char *strncpy(char *restrict destination, const char *restrict source, size_t limit) {
    size_t length = strnlen(source, limit);
    memcpy(destination, source, length);
    memset(destination + length, 0, limit - length);
    return destination;
}

char *strcat(char *restrict destination, const char *restrict source) {
    strcpy(destination + strlen(destination), source);
    return destination;
}

char *strncat(char *restrict destination, const char *restrict source, size_t limit) {
    char *end = destination + strlen(destination);
    size_t length = strnlen(source, limit);
    memcpy(end, source, length);
    end[length] = 0;
    return destination;
}

char *strchr(const char *text, int character) {
    for (;; text++) {
        if (*text == (char)character)
            return (char *)text;
        if (!*text)
            return NULL;
    }
}

char *strrchr(const char *text, int character) {
    return memrchr(text, character, strlen(text) + 1);
}

char *strstr(const char *text, const char *part) {
    size_t length = strlen(part);
    for (;; text++) {
        if (!strncmp(text, part, length))
            return (char *)text;
        if (!*text)
            return NULL;
    }
}

size_t strspn(const char *text, const char *accepted) {
    size_t length = 0;
    while (text[length] && strchr(accepted, text[length]))
        length++;
    return length;
}

size_t strcspn(const char *text, const char *refused) {
    size_t length = 0;
    while (text[length] && !strchr(refused, text[length]))
        length++;
    return length;
}

char *strpbrk(const char *text, const char *wanted) {
    text += strcspn(text, wanted);
    return *text ? (char *)text : NULL;
}

char *strdup(const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

char *strndup(const char *text, size_t limit) {
    size_t length = strnlen(text, limit);
    char *copy = malloc(length + 1);
    if (!copy)
        return NULL;
    copy[length] = 0;
    return memcpy(copy, text, length);
}

static int lower(char character) {
    return character >= 'A' && character <= 'Z' ? character + 32 : (uint8_t)character;
}

int strncasecmp(const char *left, const char *right, size_t limit) {
    for (; limit; limit--, left++, right++) {
        int difference = lower(*left) - lower(*right);
        if (difference || !*left)
            return difference;
    }
    return 0;
}

int strcasecmp(const char *left, const char *right) {
    return strncasecmp(left, right, SIZE_MAX);
}
