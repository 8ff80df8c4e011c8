#define _GNU_SOURCE
#include "memory.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/types.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

void shim_heaps_begin_large(void) {
    mallopt(M_TOP_PAD, 16 << 20);
    // It is no longer found by itself, and what is larger changes mappings each time.
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
}

// Linux 6.7; include/uapi/linux/fs.h.
struct scan_arguments {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
#define SCAN_REQUEST _IOWR('f', 16, struct scan_arguments)
enum { is_file = 1 << 2, is_present = 1 << 3, is_swapped = 1 << 4, is_zero = 1 << 5 };

_Static_assert(sizeof(struct scan_arguments) == 96, "struct pm_scan_arg");
_Static_assert(sizeof(struct shim_page_run) == 24, "struct page_region");

int shim_memory_file(const char *name) {
    int descriptor = memfd_create(name, MFD_CLOEXEC);
    return descriptor < 0 ? -errno : descriptor;
}

int shim_file_data(int file, int64_t from, int64_t *start, int64_t *end) {
    *start = lseek(file, from, SEEK_DATA);
    if (*start < 0)
        return 0;
    *end = lseek(file, *start, SEEK_HOLE);
    return *end > *start;
}

static _Atomic int pagemap = -1;

// In the child, which has one thread.
static void forget_pagemap(void) {
    int descriptor = atomic_exchange(&pagemap, -1);
    if (descriptor >= 0)
        close(descriptor);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_pagemap); }

int shim_pagemap(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    // Acquiring and releasing, here and below: nothing but the number is handed over.
    int known = atomic_load(&pagemap);
    if (known >= 0)
        return known;
    pthread_once(&once, watch_forks);
    int descriptor = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return -errno;
    if (atomic_compare_exchange_strong(&pagemap, &known, descriptor))
        return descriptor;
    // Another thread was quicker.
    close(descriptor);
    return known;
}

int shim_pagemap_scan(int pagemap, uint64_t start, uint64_t end, struct shim_page_run *runs, size_t count,
                      uint64_t *walked) {
    struct scan_arguments arguments = {
        .size = sizeof arguments,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)runs,
        .vec_len = count,
        // Not a file's and not the page of zeros, and either here or swapped out.
        .category_inverted = is_file | is_zero,
        .category_mask = is_file | is_zero,
        .category_anyof_mask = is_present | is_swapped,
        .return_mask = is_file,
    };
    int found = ioctl(pagemap, SCAN_REQUEST, &arguments);
    if (found < 0)
        return -errno;
    *walked = arguments.walk_end;
    return found;
}

uint64_t shim_thread_faults(void) {
    struct rusage usage;
    // Cannot fail: both arguments are good.
    getrusage(RUSAGE_THREAD, &usage);
    return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

int shim_copy(void *destination, const void *source, size_t count) {
    size_t done = 0;
    while (done < count) {
        struct iovec local = {(char *)destination + done, count - done};
        struct iovec remote = {(char *)source + done, count - done};
        // The process itself. Both sides are accessed by the kernel, which says so when one cannot be.
        ssize_t copied = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
        if (copied < 0 && errno == EINTR)
            continue;
        if (copied <= 0)
            return copied < 0 ? errno : EFAULT;
        done += (size_t)copied;
    }
    return 0;
}

// Every processor with hardware virtualisation that Linux runs on has the instruction.
__attribute__((target("sse4.2"))) uint32_t shim_checksum(uint32_t before, const void *bytes, size_t count) {
    const unsigned char *byte = bytes;
    uint64_t sum = (uint32_t)~before;
    for (; count >= 8; byte += 8, count -= 8) {
        uint64_t word;
        memcpy(&word, byte, 8);
        sum = __builtin_ia32_crc32di(sum, word);
    }
    for (; count > 0; byte++, count--)
        sum = __builtin_ia32_crc32qi((uint32_t)sum, *byte);
    return ~(uint32_t)sum;
}

int shim_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]) {
    return __get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
}
