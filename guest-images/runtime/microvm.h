/* What a guest module may use: the functions of the library, and the part of the C library that the guest runtime
 * brings along. One header for C, C++ and (through module.modulemap) Embedded Swift.
 *
 * A guest is an ELF shared object for x86-64 without dependencies. Its global functions of default visibility are
 * its exports: the host calls them by name. Functions that it uses and does not define are its imports: the host
 * has to offer them under that name, all but those below whose names begin with `microvm_`.
 *
 * Both directions follow the System V AMD64 ABI. What the host can pass and take back:
 *
 *     Swift                         C parameter                             C result
 *     Int8 ... Int64, UInt8 ...     int8_t ... int64_t, uint8_t ...         the same
 *     Int, UInt                     int64_t, uint64_t (or long, size_t)     the same
 *     Bool                          bool                                    bool
 *     Float, Double                 float, double                           the same
 *     String, [UInt8]               two: const char * or const uint8_t *,   struct microvm_span
 *                                   then size_t
 *     no result                                                             void
 *
 * The bytes behind a String or [UInt8] argument live in the argument arena until the call returns: a guest that wants
 * to keep them copies them. A zero byte follows them that the length does not count. What a host function returns lies
 * there too, until the guest's next host call. The bytes behind a result stay the guest's own; the host copies them out
 * before it calls again.
 *
 * There is one thread, no file system, no environment and no signal. Everything is built and linked with
 * -fPIC; a module must not have sections that are both writable and executable.
 */
#ifndef MICROVM_H
#define MICROVM_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define MICROVM_EXTERN_C extern "C"
extern "C" {
#else
#define MICROVM_EXTERN_C
#endif

/* Marks a function as an export where the compiler hides functions by default (-fvisibility=hidden), and gives it an
 * unmangled name in C++. */
#define MICROVM_EXPORT MICROVM_EXTERN_C __attribute__((visibility("default"), used))

/* A run of bytes: what a function returns that gives the host a String or [UInt8] (in rax and rdx). `base` may be
 * null when `length` is 0. */
struct microvm_span {
    void *base;
    size_t length; /* bytes */
};

/* MARK: The library */

/* Ends the guest call at once; the host sees a fault of the kind "abort" with these bytes as its message (UTF-8). The
 * sandbox is poisoned afterwards. Does not return. */
__attribute__((noreturn)) void microvm_abort(const char *message, size_t length);

enum {
    MICROVM_STANDARD_OUTPUT = 1,
    MICROVM_STANDARD_ERROR = 2,
};

/* Hands `length` bytes to the host as output of the guest. One host call: a guest that writes much should write large
 * pieces. The host decides what becomes of them. */
void microvm_write(int stream, const void *bytes, size_t length);

enum {
    MICROVM_LOG_TRACE = 0,
    MICROVM_LOG_DEBUG = 1,
    MICROVM_LOG_INFO = 2,
    MICROVM_LOG_NOTICE = 3,
    MICROVM_LOG_WARNING = 4,
    MICROVM_LOG_ERROR = 5,
    MICROVM_LOG_CRITICAL = 6,
};

/* Hands one line, without an end of its own, to the host's logger (UTF-8). The host decides which levels it wants, how
 * long a line may be and how many there may be in a second; it drops the others and says nothing about it here. One
 * host call. Any other level ends the guest call as a fault. */
void microvm_log(int level, const char *text, size_t length);

enum {
    MICROVM_CLOCK_MONOTONIC = 0, /* nanoseconds since some moment in the past; never goes back */
    MICROVM_CLOCK_REALTIME = 1,  /* nanoseconds since 1970-01-01 00:00 UTC */
};

/* The time on one of the clocks above, in nanoseconds. */
uint64_t microvm_clock(int clock);

/* Fills `length` bytes with random bytes fit for cryptography. */
void microvm_random(void *bytes, size_t length);

/* The heap: page-aligned, readable and writable memory that reads as zero until it is written. The same answer at
 * every call, but that it can grow. The allocator below takes all of it, so use one or the other. */
struct microvm_span microvm_heap(void);

/* Lets the heap grow at its end by so many bytes, rounded up to whole pages of 4096, as far as the host's limit for the
 * memory permits. Returns the end the heap had before, or null when it cannot grow by that much. */
void *microvm_heap_grow(size_t length);

/* MARK: The runtime: memory and strings, as in the C standard */

#ifndef _STRING_H
void *memcpy(void *__restrict destination, const void *__restrict source, size_t length);
void *memmove(void *destination, const void *source, size_t length);
void *memset(void *destination, int byte, size_t length);
int memcmp(const void *left, const void *right, size_t length);
void *memchr(const void *bytes, int byte, size_t length);
size_t strlen(const char *text);
size_t strnlen(const char *text, size_t limit);
int strcmp(const char *left, const char *right);
int strncmp(const char *left, const char *right, size_t limit);
char *strcpy(char *__restrict destination, const char *__restrict source);
char *strncpy(char *__restrict destination, const char *__restrict source, size_t limit);
char *strcat(char *__restrict destination, const char *__restrict source);
char *strchr(const char *text, int character);
char *strrchr(const char *text, int character);
char *strstr(const char *text, const char *part);
char *strdup(const char *text);
char *strerror(int error);
#endif

/* MARK: The runtime: an allocator over the heap */

/* Blocks are aligned to 16 bytes. Exhaustion, and sizes whose arithmetic overflows, give null and set errno to ENOMEM.
 * Freed blocks are merged with their free neighbours. A block that is freed twice, or was never allocated, aborts. */
#ifndef _STDLIB_H
void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void *realloc(void *block, size_t size);
void free(void *block);
void *aligned_alloc(size_t alignment, size_t size);
int posix_memalign(void **block, size_t alignment, size_t size);

/* MARK: The runtime: ends, numbers, sorting */

__attribute__((noreturn)) void abort(void);    /* microvm_abort with the message "abort()" */
__attribute__((noreturn)) void exit(int status); /* microvm_abort with the message "exit(status)" */
int abs(int value);
long labs(long value);
int atoi(const char *text);
long strtol(const char *__restrict text, char **__restrict end, int base);
long long strtoll(const char *__restrict text, char **__restrict end, int base);
unsigned long strtoul(const char *__restrict text, char **__restrict end, int base);
unsigned long long strtoull(const char *__restrict text, char **__restrict end, int base);
double strtod(const char *__restrict text, char **__restrict end); /* decimal, rounded to nearest */
void qsort(void *elements, size_t count, size_t size, int (*compare)(const void *, const void *));
void *bsearch(const void *key, const void *elements, size_t count, size_t size,
              int (*compare)(const void *, const void *));
uint32_t arc4random(void);
void arc4random_buf(void *bytes, size_t length); /* microvm_random */
#endif

/* MARK: The runtime: formatted output
 *
 * Conversions: %d %i %u %x %X %o %c %s %p %f %F %e %E %g %G %%, with the flags - + space # 0, width and precision
 * (numbers or *), and the lengths hh h l ll z j t L. Floating point is exact and rounds half to even, as in glibc; long
 * double is converted to double first. Output is not buffered beyond one call: each call of these functions is one host
 * call, or one for every 512 bytes of formatted text. */
#ifndef _STDIO_H
typedef struct _IO_FILE FILE;
extern FILE *stdout; /* microvm_write to stream 1 */
extern FILE *stderr; /* microvm_write to stream 2 */
#define EOF (-1)
int putchar(int character);
int puts(const char *text);
int fputc(int character, FILE *stream);
int fputs(const char *__restrict text, FILE *__restrict stream);
size_t fwrite(const void *__restrict elements, size_t size, size_t count, FILE *__restrict stream);
int fflush(FILE *stream);
__attribute__((format(printf, 1, 2))) int printf(const char *__restrict format, ...);
__attribute__((format(printf, 2, 3))) int fprintf(FILE *__restrict stream, const char *__restrict format, ...);
__attribute__((format(printf, 2, 3))) int sprintf(char *__restrict text, const char *__restrict format, ...);
__attribute__((format(printf, 3, 4))) int snprintf(char *__restrict text, size_t size, const char *__restrict format,
                                                   ...);
__attribute__((format(printf, 1, 0))) int vprintf(const char *__restrict format, va_list arguments);
__attribute__((format(printf, 2, 0))) int vfprintf(FILE *__restrict stream, const char *__restrict format,
                                                   va_list arguments);
__attribute__((format(printf, 3, 0))) int vsnprintf(char *__restrict text, size_t size, const char *__restrict format,
                                                    va_list arguments);
#endif

#ifndef _ERRNO_H
int *__errno_location(void);
#define errno (*__errno_location())
#define ENOMEM 12
#define EINVAL 22
#define ERANGE 34
#define ENOSYS 38
#endif

/* A line for the host's logger, formatted as by printf and cut after 1023 bytes. */
__attribute__((format(printf, 2, 3))) void microvm_log_format(int level, const char *__restrict format, ...);

/* Aborts with "file:line: function: assertion failed: expression", unless NDEBUG is defined. */
__attribute__((noreturn)) void __assert_fail(const char *expression, const char *file, unsigned int line,
                                             const char *function);
#ifndef assert
#ifdef NDEBUG
#define assert(expression) ((void)0)
#else
#define assert(expression) ((expression) ? (void)0 : __assert_fail(#expression, __FILE__, __LINE__, __func__))
#endif
#endif

#ifdef __cplusplus
}
#endif

#endif
