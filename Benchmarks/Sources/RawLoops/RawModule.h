#ifndef RAW_MODULE_H
#define RAW_MODULE_H

#include <elf.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

// A guest module as a mapped file and what is needed to put it into memory: nothing is checked, because the module is
// built beside the program that loads it. Also what is asked of KVM once in a process.
struct raw_module {
    uint8_t *file;
    size_t file_size;
    const Elf64_Phdr *segments;
    size_t segment_count;
    const Elf64_Rela *relocations[2];
    size_t relocation_counts[2];
    const Elf64_Sym *symbols;
    size_t symbol_count;
    const char *names;

    int kvm;
    int run_size;
    struct kvm_sregs reset_registers;
    struct kvm_cpuid2 *cpuid;

    uint64_t add;
    uint64_t call_host;
    uint64_t call_host_once;
    uint64_t fold;
    uint64_t spin;
    uint64_t counter_address;
    uint64_t count_up;
    uint64_t write_pages;
    uint64_t read_pages;
};

#endif
