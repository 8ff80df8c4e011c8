#define _GNU_SOURCE
#include "RawModule.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "RawLayout.h"
#include "RawLoops.h"

#define CPUID_ENTRIES 256

static const void *at(const raw_module *module, uint64_t address) {
    for (size_t i = 0; i < module->segment_count; i++) {
        const Elf64_Phdr *segment = &module->segments[i];
        if (segment->p_type == PT_LOAD && address - segment->p_vaddr < segment->p_filesz) {
            return module->file + segment->p_offset + (address - segment->p_vaddr);
        }
    }
    return NULL;
}

static uint64_t export(const raw_module *module, const char *name) {
    for (size_t i = 1; i < module->symbol_count; i++) {
        const Elf64_Sym *symbol = &module->symbols[i];
        if (symbol->st_shndx != SHN_UNDEF && strcmp(module->names + symbol->st_name, name) == 0) {
            return RAW_IMAGE + symbol->st_value;
        }
    }
    return 0;
}

static int map_file(raw_module *module, const char *path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return errno;
    }
    struct stat status;
    int error = fstat(descriptor, &status) < 0 ? errno : 0;
    if (error == 0) {
        module->file_size = (size_t)status.st_size;
        module->file = mmap(NULL, module->file_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, descriptor, 0);
        if (module->file == MAP_FAILED) {
            module->file = NULL;
            error = errno;
        }
    }
    close(descriptor);
    return error;
}

static int parse(raw_module *module) {
    const Elf64_Ehdr *header = (const void *)module->file;
    module->segments = (const void *)(module->file + header->e_phoff);
    module->segment_count = header->e_phnum;
    for (size_t i = 0; i < module->segment_count; i++) {
        if (module->segments[i].p_type != PT_DYNAMIC) {
            continue;
        }
        for (const Elf64_Dyn *entry = at(module, module->segments[i].p_vaddr); entry->d_tag != DT_NULL; entry++) {
            uint64_t value = entry->d_un.d_val;
            switch (entry->d_tag) {
            case DT_SYMTAB: module->symbols = at(module, value); break;
            case DT_STRTAB: module->names = at(module, value); break;
            case DT_HASH: module->symbol_count = ((const uint32_t *)at(module, value))[1]; break;
            case DT_RELA: module->relocations[0] = at(module, value); break;
            case DT_RELASZ: module->relocation_counts[0] = value / sizeof(Elf64_Rela); break;
            case DT_JMPREL: module->relocations[1] = at(module, value); break;
            case DT_PLTRELSZ: module->relocation_counts[1] = value / sizeof(Elf64_Rela); break;
            }
        }
    }
    module->add = export(module, "add");
    module->call_host = export(module, "call_host");
    module->call_host_once = export(module, "call_host_once");
    module->fold = export(module, "fold");
    module->spin = export(module, "spin");
    module->write_pages = export(module, "write_pages");
    module->read_pages = export(module, "read_pages");
    module->counter_address = export(module, "counter_address");
    module->count_up = export(module, "count_up");
    return module->add && module->call_host && module->call_host_once && module->fold && module->spin &&
                   module->write_pages && module->read_pages && module->counter_address && module->count_up
               ? 0
               : ENOEXEC;
}

// Opens KVM and learns, by a virtual CPU made for it, the registers that one starts with.
static int ask_kvm(raw_module *module) {
    module->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (module->kvm < 0) {
        return errno;
    }
    int wanted = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    if ((ioctl(module->kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) & wanted) != wanted) {
        return ENOTSUP;
    }
    module->cpuid = calloc(1, sizeof(struct kvm_cpuid2) + CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2));
    if (module->cpuid == NULL) {
        return ENOMEM;
    }
    module->cpuid->nent = CPUID_ENTRIES;
    module->run_size = ioctl(module->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (module->run_size < 0 || ioctl(module->kvm, KVM_GET_SUPPORTED_CPUID, module->cpuid) < 0) {
        return errno;
    }
    int machine = ioctl(module->kvm, KVM_CREATE_VM, 0);
    int processor = machine < 0 ? -1 : ioctl(machine, KVM_CREATE_VCPU, 0);
    int error = processor < 0 || ioctl(processor, KVM_GET_SREGS, &module->reset_registers) < 0 ? errno : 0;
    if (processor >= 0) {
        close(processor);
    }
    if (machine >= 0) {
        close(machine);
    }
    return error;
}

int raw_module_load(const char *path, raw_module **result) {
    raw_module *module = calloc(1, sizeof(raw_module));
    if (module == NULL) {
        return ENOMEM;
    }
    module->kvm = -1;
    int error = map_file(module, path);
    if (error == 0) {
        error = parse(module);
    }
    if (error == 0) {
        error = ask_kvm(module);
    }
    if (error != 0) {
        raw_module_free(module);
        return error;
    }
    *result = module;
    return 0;
}

void raw_module_free(raw_module *module) {
    if (module->kvm >= 0) {
        close(module->kvm);
    }
    if (module->file != NULL) {
        munmap(module->file, module->file_size);
    }
    free(module->cpuid);
    free(module);
}
