// What Swift cannot import from the C library and the kernel's headers. One prefix: shim_.
#ifndef SWIFT_MICROVM_CSHIMS_H
#define SWIFT_MICROVM_CSHIMS_H

#if !defined(__linux__) || !defined(__x86_64__)
#error "swift-microvm runs on Linux x86-64 only: it needs /dev/kvm and an x86-64 processor."
#endif

// O_CLOEXEC and other names that are not in ISO C. Not _GNU_SOURCE: it changes fd_set, and clang then refuses to import
// this module beside another one that was compiled without it.
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif

// ---- /dev/kvm: begin -------------------------------------------------------------------------------------------
// One typed function a request. Each returns what the system call returned, or the negated error number, so that
// nothing between the call and its caller can overwrite errno.

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

// Request numbers carry the size of their argument: a struct of another size would be another request.
_Static_assert(sizeof(struct kvm_userspace_memory_region) == 32, "struct kvm_userspace_memory_region");
_Static_assert(sizeof(struct kvm_regs) == 144, "struct kvm_regs");
_Static_assert(sizeof(struct kvm_segment) == 24, "struct kvm_segment");
_Static_assert(sizeof(struct kvm_dtable) == 16, "struct kvm_dtable");
_Static_assert(sizeof(struct kvm_sregs) == 312, "struct kvm_sregs");
_Static_assert(sizeof(struct kvm_cpuid_entry2) == 40, "struct kvm_cpuid_entry2");
_Static_assert(sizeof(struct kvm_cpuid2) == 8, "struct kvm_cpuid2");
_Static_assert(sizeof(struct kvm_msr_entry) == 16, "struct kvm_msr_entry");
_Static_assert(sizeof(struct kvm_msrs) == 8, "struct kvm_msrs");
_Static_assert(sizeof(struct kvm_msr_filter) == 392, "struct kvm_msr_filter");
_Static_assert(sizeof(struct kvm_xsave) == 4096, "struct kvm_xsave");
_Static_assert(sizeof(struct kvm_xcrs) == 392, "struct kvm_xcrs");
_Static_assert(sizeof(struct kvm_debugregs) == 128, "struct kvm_debugregs");
_Static_assert(sizeof(struct kvm_guest_debug) == 72, "struct kvm_guest_debug");
_Static_assert(sizeof(struct kvm_mp_state) == 4, "struct kvm_mp_state");
_Static_assert(sizeof(struct kvm_vcpu_events) == 64, "struct kvm_vcpu_events");
_Static_assert(offsetof(struct kvm_run, immediate_exit) == 1, "kvm_run.immediate_exit");
_Static_assert(offsetof(struct kvm_run, exit_reason) == 8, "kvm_run.exit_reason");
_Static_assert(offsetof(struct kvm_run, hw) == 32, "the union of exits in struct kvm_run");
_Static_assert(offsetof(struct kvm_run, s) == 304, "the shared registers in struct kvm_run");
_Static_assert(sizeof(struct kvm_run) == 2352, "struct kvm_run");

// Newer than the oldest headers this builds with (Linux 6.1).
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_CAP_MEMORY_FAULT_INFO
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif

static inline int shim_result(int result) { return result < 0 ? -errno : result; }

// The system itself.

static inline int shim_kvm_open(const char *_Nonnull path) { return shim_result(open(path, O_RDWR | O_CLOEXEC)); }
static inline int shim_kvm_get_api_version(int kvm) { return shim_result(ioctl(kvm, KVM_GET_API_VERSION, 0)); }
static inline int shim_kvm_get_vcpu_mmap_size(int kvm) { return shim_result(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)); }
static inline int shim_kvm_create_vm(int kvm) { return shim_result(ioctl(kvm, KVM_CREATE_VM, 0)); }
static inline int shim_kvm_get_supported_cpuid(int kvm, struct kvm_cpuid2 *_Nonnull cpuid) {
    return shim_result(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
}
// On the system or on a virtual machine.
static inline int shim_kvm_check_extension(int descriptor, long capability) {
    return shim_result(ioctl(descriptor, KVM_CHECK_EXTENSION, capability));
}

// Virtual machines.

static inline int shim_kvm_set_user_memory_region(
    int vm, const struct kvm_userspace_memory_region *_Nonnull region) {
    return shim_result(ioctl(vm, KVM_SET_USER_MEMORY_REGION, region));
}
static inline int shim_kvm_set_tss_addr(int vm, unsigned long address) {
    return shim_result(ioctl(vm, KVM_SET_TSS_ADDR, address));
}
static inline int shim_kvm_set_msr_filter(int vm, const struct kvm_msr_filter *_Nonnull filter) {
    return shim_result(ioctl(vm, KVM_X86_SET_MSR_FILTER, filter));
}
static inline int shim_kvm_create_vcpu(int vm, unsigned long identifier) {
    return shim_result(ioctl(vm, KVM_CREATE_VCPU, identifier));
}

// Virtual CPUs. Null with *error set, or the mapping.
static inline void *_Nullable shim_kvm_map_run(int vcpu, void *_Nullable hint, size_t size, int *_Nonnull error) {
    void *mapping = mmap(hint, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (mapping == MAP_FAILED) {
        *error = errno;
        return NULL;
    }
    return mapping;
}
static inline void shim_kvm_unmap_run(void *_Nonnull mapping, size_t size) { munmap(mapping, size); }
static inline int shim_kvm_run(int vcpu) { return shim_result(ioctl(vcpu, KVM_RUN, 0)); }

#define SHIM_KVM_GET(name, request, type)                                                                             \
    static inline int shim_kvm_get_##name(int vcpu, type *_Nonnull value) {                                           \
        return shim_result(ioctl(vcpu, request, value));                                                              \
    }
#define SHIM_KVM_SET(name, request, type)                                                                             \
    static inline int shim_kvm_set_##name(int vcpu, const type *_Nonnull value) {                                     \
        return shim_result(ioctl(vcpu, request, value));                                                              \
    }
SHIM_KVM_GET(regs, KVM_GET_REGS, struct kvm_regs)
SHIM_KVM_SET(regs, KVM_SET_REGS, struct kvm_regs)
SHIM_KVM_GET(sregs, KVM_GET_SREGS, struct kvm_sregs)
SHIM_KVM_SET(sregs, KVM_SET_SREGS, struct kvm_sregs)
SHIM_KVM_GET(xsave, KVM_GET_XSAVE, void)
SHIM_KVM_GET(xsave2, KVM_GET_XSAVE2, void)
SHIM_KVM_SET(xsave, KVM_SET_XSAVE, void)
SHIM_KVM_GET(xcrs, KVM_GET_XCRS, struct kvm_xcrs)
SHIM_KVM_SET(xcrs, KVM_SET_XCRS, struct kvm_xcrs)
SHIM_KVM_GET(msrs, KVM_GET_MSRS, struct kvm_msrs)
SHIM_KVM_SET(msrs, KVM_SET_MSRS, struct kvm_msrs)
SHIM_KVM_GET(debugregs, KVM_GET_DEBUGREGS, struct kvm_debugregs)
SHIM_KVM_SET(debugregs, KVM_SET_DEBUGREGS, struct kvm_debugregs)
SHIM_KVM_GET(cpuid, KVM_GET_CPUID2, struct kvm_cpuid2)
SHIM_KVM_SET(cpuid, KVM_SET_CPUID2, struct kvm_cpuid2)
SHIM_KVM_SET(guest_debug, KVM_SET_GUEST_DEBUG, struct kvm_guest_debug)
SHIM_KVM_GET(mp_state, KVM_GET_MP_STATE, struct kvm_mp_state)
SHIM_KVM_SET(mp_state, KVM_SET_MP_STATE, struct kvm_mp_state)
SHIM_KVM_GET(vcpu_events, KVM_GET_VCPU_EVENTS, struct kvm_vcpu_events)
SHIM_KVM_SET(vcpu_events, KVM_SET_VCPU_EVENTS, struct kvm_vcpu_events)
#undef SHIM_KVM_GET
#undef SHIM_KVM_SET

// Exits. The members of the union in struct kvm_run have types without a name; these are copies of the ones read
// here, so that reading one never copies the whole struct.

struct shim_kvm_io {
    uint64_t data_offset;
    uint32_t count;
    uint16_t port;
    uint8_t size;
    uint8_t direction;
};
struct shim_kvm_mmio {
    uint64_t address;
    uint32_t length;
    uint8_t is_write;
};
struct shim_kvm_fail_entry {
    uint64_t reason;
    uint32_t cpu;
};
struct shim_kvm_memory_fault {
    uint64_t flags;
    uint64_t address;
    uint64_t size;
};
// A number and up to 16 words that say more: internal errors and system events.
struct shim_kvm_report {
    uint32_t type;
    uint32_t count;
};

_Static_assert(
    offsetof(struct kvm_run, internal.data) == offsetof(struct kvm_run, system_event.data), "the words of a report");
static const size_t shim_kvm_immediate_exit_offset = offsetof(struct kvm_run, immediate_exit);
static const size_t shim_kvm_mmio_data_offset = offsetof(struct kvm_run, mmio.data);
// The same place for internal errors and system events.
static const size_t shim_kvm_report_words_offset = offsetof(struct kvm_run, internal.data);

static inline uint32_t shim_kvm_exit_reason(const struct kvm_run *_Nonnull run) { return run->exit_reason; }
static inline struct shim_kvm_io shim_kvm_exit_io(const struct kvm_run *_Nonnull run) {
    struct shim_kvm_io io = {run->io.data_offset, run->io.count, run->io.port, run->io.size, run->io.direction};
    return io;
}
static inline struct shim_kvm_mmio shim_kvm_exit_mmio(const struct kvm_run *_Nonnull run) {
    struct shim_kvm_mmio mmio = {run->mmio.phys_addr, run->mmio.len, run->mmio.is_write};
    return mmio;
}
static inline struct shim_kvm_fail_entry shim_kvm_exit_fail_entry(const struct kvm_run *_Nonnull run) {
    struct shim_kvm_fail_entry failure = {run->fail_entry.hardware_entry_failure_reason, run->fail_entry.cpu};
    return failure;
}
static inline struct kvm_debug_exit_arch shim_kvm_exit_debug(const struct kvm_run *_Nonnull run) {
    return run->debug.arch;
}
static inline struct shim_kvm_report shim_kvm_exit_internal_error(const struct kvm_run *_Nonnull run) {
    struct shim_kvm_report report = {run->internal.suberror, run->internal.ndata};
    return report;
}
static inline struct shim_kvm_report shim_kvm_exit_system_event(const struct kvm_run *_Nonnull run) {
    struct shim_kvm_report report = {run->system_event.type, run->system_event.ndata};
    return report;
}
static inline struct shim_kvm_memory_fault shim_kvm_exit_memory_fault(const struct kvm_run *_Nonnull run) {
    struct shim_kvm_memory_fault fault;
    memcpy(&fault, run->padding, sizeof fault);
    return fault;
}

// Shared registers (KVM_CAP_SYNC_REGS).

static inline uint64_t shim_kvm_valid_regs(const struct kvm_run *_Nonnull run) { return run->kvm_valid_regs; }
static inline void shim_kvm_set_valid_regs(struct kvm_run *_Nonnull run, uint64_t set) { run->kvm_valid_regs = set; }
static inline uint64_t shim_kvm_dirty_regs(const struct kvm_run *_Nonnull run) { return run->kvm_dirty_regs; }
static inline void shim_kvm_set_dirty_regs(struct kvm_run *_Nonnull run, uint64_t set) { run->kvm_dirty_regs = set; }
static inline struct kvm_sync_regs *_Nonnull shim_kvm_shared(struct kvm_run *_Nonnull run) { return &run->s.regs; }
// ---- /dev/kvm: end ---------------------------------------------------------------------------------------------

#include "confinement.h"
#include "guest_layout.h"
#include "interrupt.h"
#include "memory.h"
#include "userfault.h"

// supervisor.S: the code that is copied into every guest. Swift imports functions that return an address, but no array
// whose length is not known.
extern const uint8_t shim_supervisor_code[], shim_supervisor_code_end[];
extern const uint8_t shim_trampoline[], shim_trampoline_end[];
extern const uint8_t shim_trampoline_return[], shim_trampoline_invoke[], shim_trampoline_host_call[];
extern const uint8_t shim_trampoline_thread_local_address[], shim_trampoline_stack_top[];
extern const uint8_t shim_trampoline_reset[], shim_trampoline_reset_legacy[];
extern const uint8_t shim_trampoline_save[], shim_trampoline_save_legacy[];
extern const uint8_t shim_trampoline_load[], shim_trampoline_load_legacy[];
extern const uint8_t shim_trampoline_invoke_end[];

// A stretch of such code.
struct shim_code {
    const uint8_t *_Nonnull start;
    size_t count;
};

static inline struct shim_code shim_supervisor(void) {
    return (struct shim_code){shim_supervisor_code, (size_t)(shim_supervisor_code_end - shim_supervisor_code)};
}

static inline struct shim_code shim_trampoline_code(void) {
    return (struct shim_code){shim_trampoline, (size_t)(shim_trampoline_end - shim_trampoline)};
}

// Offsets from the trampoline's start.
static inline uint64_t shim_return_offset(void) { return (uint64_t)(shim_trampoline_return - shim_trampoline); }
static inline uint64_t shim_host_call_offset(void) { return (uint64_t)(shim_trampoline_host_call - shim_trampoline); }
static inline uint64_t shim_thread_local_address_offset(void) {
    return (uint64_t)(shim_trampoline_thread_local_address - shim_trampoline);
}
static inline uint64_t shim_reset_offset(bool legacy) {
    return (uint64_t)((legacy ? shim_trampoline_reset_legacy : shim_trampoline_reset) - shim_trampoline);
}
static inline uint64_t shim_save_offset(bool legacy) {
    return (uint64_t)((legacy ? shim_trampoline_save_legacy : shim_trampoline_save) - shim_trampoline);
}
static inline uint64_t shim_load_offset(bool legacy) {
    return (uint64_t)((legacy ? shim_trampoline_load_legacy : shim_trampoline_load) - shim_trampoline);
}
static inline uint64_t shim_invoke_offset(void) { return (uint64_t)(shim_trampoline_invoke - shim_trampoline); }
static inline uint64_t shim_invoke_end_offset(void) { return (uint64_t)(shim_trampoline_invoke_end - shim_trampoline); }
static inline uint64_t shim_stack_top_offset(void) { return (uint64_t)(shim_trampoline_stack_top - shim_trampoline); }

// getrandom(2), which the C library's overlay leaves out.
static inline ssize_t shim_random(void *_Nonnull bytes, size_t count) { return getrandom(bytes, count, 0); }

#endif
