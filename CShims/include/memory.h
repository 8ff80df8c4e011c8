// Files in memory, and the pages of a mapping that are no file's.
#ifndef SWIFT_MICROVM_MEMORY_H
#define SWIFT_MICROVM_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Has the C library's heaps, of which threads have their own, begin with 16 MiB of addresses instead of growing by a
// page at a time: each growth changes a mapping, and Linux tells every virtual machine of the process of that. Nothing
// for threads that are there already.
void shim_heaps_begin_large(void);

// memfd_create(2), closed on exec. The descriptor, or a negated errno.
int shim_memory_file(const char *_Nonnull name);

// The next stretch of a sparse file that has data, from an offset on (lseek(2), SEEK_DATA and SEEK_HOLE). Whether there
// is one.
int shim_file_data(int file, int64_t from, int64_t *_Nonnull start, int64_t *_Nonnull end);

// One run of pages that PAGEMAP_SCAN has found: addresses, the end exclusive. The layout of the kernel's struct
// page_region, which older headers lack.
struct shim_page_run {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

// /proc/self/pagemap, opened once in a process: a descriptor is of the memory of the process that has opened it, so a
// child of fork(2) opens its own. The descriptor, or a negated errno.
int shim_pagemap(void);

// Finds the pages from `start` to `end` that this process has to itself: in memory or swapped out, neither a file's nor
// the kernel's page of zeros. The number of runs found, or a negated errno (ENOTTY: a kernel before Linux 6.7);
// `*walked` is the address up to which was looked, less than `end` when there was no more room.
// ioctl PAGEMAP_SCAN, Documentation/admin-guide/mm/pagemap.rst.
int shim_pagemap_scan(int pagemap, uint64_t start, uint64_t end, struct shim_page_run *_Nonnull runs, size_t count,
                      uint64_t *_Nonnull walked);

// How many page faults the calling thread has had, those included that the kernel has had on its behalf, as KVM has for
// its guest.
uint64_t shim_thread_faults(void);

// Copies bytes of this process by way of the kernel: from or to memory whose file may be truncated at any moment, or
// whose pages may not come, which a plain access would be killed for. 0, or an errno (EFAULT).
int shim_copy(void *_Nonnull destination, const void *_Nonnull source, size_t count);

// The CRC-32C (Castagnoli, RFC 3720 B.4) of bytes, going on from the one of the bytes before them; 0 to begin with.
uint32_t shim_checksum(uint32_t before, const void *_Nullable bytes, size_t count);

// CPUID of the processor this runs on: leaf and subleaf, to eax, ebx, ecx, edx. Whether there is that leaf.
int shim_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[_Nonnull 4]);

#endif
