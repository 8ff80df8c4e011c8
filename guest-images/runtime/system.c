/* What libraries ask of an operating system, where there is none: files that cannot be opened, memory that cannot be
 * mapped, signals that do not exist. Everything fails in the way its caller is prepared for, but for writing to the two
 * output streams by number. */
#include "runtime.h"

static long unavailable(void) {
    errno = ENOSYS;
    return -1;
}

int open(const char *path, int flags, ...) { return (void)path, (void)flags, (int)unavailable(); }
int open64(const char *path, int flags, ...) { return (void)path, (void)flags, (int)unavailable(); }
int close(int file) { return (void)file, (int)unavailable(); }
ptrdiff_t read(int file, void *bytes, size_t length) { return (void)file, (void)bytes, (void)length, unavailable(); }
ptrdiff_t write(int file, const void *bytes, size_t length) {
    if (file != MICROVM_STANDARD_OUTPUT && file != MICROVM_STANDARD_ERROR)
        return unavailable();
    microvm_write(file, bytes, length);
    return (ptrdiff_t)length;
}
long lseek(int file, long offset, int from) { return (void)file, (void)offset, (void)from, unavailable(); }
long lseek64(int file, long offset, int from) { return (void)file, (void)offset, (void)from, unavailable(); }
int fstat(int file, void *status) { return (void)file, (void)status, (int)unavailable(); }
int stat(const char *path, void *status) { return (void)path, (void)status, (int)unavailable(); }
int fcntl(int file, int command, ...) { return (void)file, (void)command, (int)unavailable(); }
int ioctl(int file, unsigned long request, ...) { return (void)file, (void)request, (int)unavailable(); }
int poll(void *files, unsigned long count, int timeout) {
    return (void)files, (void)count, (void)timeout, (int)unavailable();
}
int remove(const char *path) { return (void)path, (int)unavailable(); }
int unlink(const char *path) { return (void)path, (int)unavailable(); }
FILE *fopen(const char *path, const char *mode) { return (void)path, (void)mode, unavailable(), NULL; }
FILE *fopen64(const char *path, const char *mode) { return (void)path, (void)mode, unavailable(), NULL; }
FILE *freopen(const char *path, const char *mode, FILE *file) {
    return (void)path, (void)mode, (void)file, unavailable(), NULL;
}
FILE *freopen64(const char *path, const char *mode, FILE *file) {
    return (void)path, (void)mode, (void)file, unavailable(), NULL;
}
FILE *fdopen(int file, const char *mode) { return (void)file, (void)mode, unavailable(), NULL; }

void *mmap(void *address, size_t length, int protection, int flags, int file, long offset) {
    (void)address, (void)length, (void)protection, (void)flags, (void)file, (void)offset;
    return (void *)unavailable();
}
int munmap(void *address, size_t length) { return (void)address, (void)length, (int)unavailable(); }
int mprotect(void *address, size_t length, int protection) {
    return (void)address, (void)length, (void)protection, (int)unavailable();
}
int madvise(void *address, size_t length, int advice) { return (void)address, (void)length, (void)advice, 0; }
int posix_madvise(void *address, size_t length, int advice) { return (void)address, (void)length, (void)advice, 0; }
int mlock(const void *address, size_t length) { return (void)address, (void)length, (int)unavailable(); }
int munlock(const void *address, size_t length) { return (void)address, (void)length, (int)unavailable(); }

long sysconf(int name) {
    enum { page_size = 30, processors_configured = 83, processors_online = 84 }; /* as glibc numbers them */
    switch (name) {
    case page_size: return 4096;
    case processors_configured: case processors_online: return 1;
    default: return -1;
    }
}
int getpagesize(void) { return 4096; }
int sched_yield(void) { return 0; }
int raise(int signal) { runtime_abort("raise(%d)", signal); }
int sigfillset(void *signals) { return (void)signals, 0; }
int sigemptyset(void *signals) { return (void)signals, 0; }
int pthread_sigmask(int how, const void *signals, void *before) {
    return (void)how, (void)signals, (void)before, 0;
}
int sched_getaffinity(int process, size_t size, void *processors) {
    return (void)process, (void)size, (void)processors, (int)unavailable();
}
int __sched_cpucount(size_t size, const void *processors) { return (void)size, (void)processors, 1; }

/* struct lconv of the C locale: three texts of numbers, seven of money, fourteen numbers that say "not available". */
void *localeconv(void) {
    static struct { const char *texts[10]; char numbers[14]; } locale = {
        {".", "", "", "", "", "", "", "", "", ""},
        {127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127},
    };
    return &locale;
}
char *setlocale(int category, const char *name) { return (void)category, (void)name, "C"; }
