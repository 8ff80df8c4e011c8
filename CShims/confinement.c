#define _GNU_SOURCE
#include "confinement.h"

#include "interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// ---- Requests --------------------------------------------------------------------------------------------------

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
// PAGEMAP_SCAN, whose argument has 96 bytes; see memory.c.
#define SCAN_REQUEST _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, 96)

static const uint32_t virtual_cpu_requests[] = {
    KVM_RUN,          KVM_GET_REGS,     KVM_SET_REGS,      KVM_GET_SREGS,     KVM_SET_SREGS,       KVM_GET_XSAVE,
    KVM_GET_XSAVE2,   KVM_GET_XCRS,     KVM_SET_XCRS,      KVM_SET_DEBUGREGS, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS,
    KVM_GET_MP_STATE, KVM_SET_MP_STATE,
};
static const uint32_t memory_requests[] = {KVM_SET_USER_MEMORY_REGION};
static const uint32_t machine_requests[] = {
    KVM_GET_API_VERSION,     KVM_CREATE_VM,   KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE,
    KVM_GET_SUPPORTED_CPUID, KVM_CREATE_VCPU, KVM_SET_CPUID2,      KVM_SET_TSS_ADDR,
    KVM_X86_SET_MSR_FILTER,  USERFAULTFD_IOC_NEW,
};
static const uint32_t page_requests[] = {
    UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_WAKE, SCAN_REQUEST,
};
static const uint32_t terminal_requests[] = {
    TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO,
};
static const uint32_t terminal_size_requests[] = {TCGETS, TIOCGWINSZ};

#define REQUESTS(array) ((struct shim_requests){array, sizeof array / sizeof *array})

struct shim_requests shim_requests(int group) {
    switch (group) {
    case SHIM_REQUESTS_VIRTUAL_CPU: return REQUESTS(virtual_cpu_requests);
    case SHIM_REQUESTS_MEMORY: return REQUESTS(memory_requests);
    case SHIM_REQUESTS_MACHINE: return REQUESTS(machine_requests);
    case SHIM_REQUESTS_PAGES: return REQUESTS(page_requests);
    case SHIM_REQUESTS_TERMINAL: return REQUESTS(terminal_requests);
    default: return REQUESTS(terminal_size_requests);
    }
}

uint32_t shim_request_run(void) { return KVM_RUN; }

// ---- Violations ------------------------------------------------------------------------------------------------

enum { longest_name = 32, names_maximum = 1024 };
static char system_call_names[names_maximum][longest_name];
static int report_descriptor = STDERR_FILENO;
static bool ends_calls;

static _Thread_local int thread_role = SHIM_ROLE_PROCESS;
static _Thread_local struct shim_violation last_violation;

const char *shim_system_call_name(int64_t number) {
    if (number < 0 || number >= names_maximum || !system_call_names[number][0]) return NULL;
    return system_call_names[number];
}

// A line that is put together without anything that a signal handler may not call.
struct line {
    char text[512];
    size_t count;
};

static void append(struct line *line, const char *text) {
    while (*text && line->count < sizeof line->text) line->text[line->count++] = *text++;
}

static void append_number(struct line *line, uint64_t number, unsigned base) {
    char digits[24];
    size_t count = sizeof digits;
    digits[--count] = 0;
    do digits[--count] = "0123456789abcdef"[number % base];
    while (number /= base);
    append(line, base == 16 ? "0x" : "");
    append(line, digits + count);
}

static void report(const struct shim_violation *violation, const char *end) {
    static const char *const roles[] = {"of the process", "of a virtual CPU", "of page faults"};
    const char *name = shim_system_call_name(violation->system_call);
    struct line line = {.count = 0};
    append(&line, "microvm: confinement violated: thread ");
    append_number(&line, (uint64_t)syscall(SYS_gettid), 10);
    append(&line, " (");
    append(&line, roles[thread_role]);
    append(&line, ") attempted the system call ");
    append(&line, name ? name : "of an unknown name");
    append(&line, " (");
    append_number(&line, (uint64_t)violation->system_call, 10);
    append(&line, ") with the arguments");
    for (int i = 0; i < 6; i++) {
        append(&line, i ? ", " : " ");
        append_number(&line, violation->arguments[i], 16);
    }
    append(&line, ", at ");
    append_number(&line, violation->address, 16);
    append(&line, end);
    size_t done = 0;
    while (done < line.count) {
        ssize_t written = write(report_descriptor, line.text + done, line.count - done);
        if (written < 0 && errno == EINTR) continue;
        // Nobody hears it; the status of the process tells as well.
        if (written <= 0) break;
        done += (size_t)written;
    }
}

_Noreturn static void end_process(void) {
    // Every filter has the kernel kill the process for this one. Not by raise(3): the signal's handler would have to go
    // first, which is what filters forbid.
    syscall(SYS_vserver, 0, 0, 0, 0);
    _exit(128 + SIGSYS);
}

// Once a second, where work waits, libdispatch counts how many of its workers are runnable: it opens each one's stat
// below /proc, and crashes when it cannot. A confined process may open nothing, and a filter does not see paths, so
// that this is answered here, with a file in memory in which the worker is runnable: libdispatch then replaces no
// worker that is blocked.
static int worker_stat = -1;

static void prepare_worker_stat(void) {
    static const char stat[] = "0 (worker) R\n";
    int descriptor = memfd_create("worker", MFD_CLOEXEC);
    if (descriptor < 0) return;
    // Out of the way of the descriptors that programs count on.
    int high = fcntl(descriptor, F_DUPFD_CLOEXEC, 100);
    if (high >= 0) {
        close(descriptor);
        descriptor = high;
    }
    if (write(descriptor, stat, sizeof stat - 1) == sizeof stat - 1) worker_stat = descriptor;
}

static const char *skip(const char *text, const char *expected) {
    while (text && *expected) text = *text++ == *expected++ ? text : NULL;
    return text;
}

static const char *skip_number(const char *text) {
    if (!text || *text < '0' || *text > '9') return NULL;
    while (*text >= '0' && *text <= '9') text++;
    return text;
}

// Whether it is /proc/NUMBER/stat or /proc/NUMBER/task/NUMBER/stat.
static bool is_stat_path(const char *path) {
    const char *id = skip_number(skip(path, "/proc/"));
    const char *thread = skip_number(skip(id, "/task/"));
    const char *end = skip(thread ? thread : id, "/stat");
    return end && !*end;
}

// A descriptor of that file for whoever wants to open a thread's stat, and nothing else; else negative.
static int open_worker_stat(const struct shim_violation *violation) {
    if (worker_stat < 0 || thread_role != SHIM_ROLE_PROCESS || violation->system_call != SYS_openat ||
        (int)violation->arguments[0] != AT_FDCWD || (int)violation->arguments[2] != (O_RDONLY | O_NONBLOCK))
        return -1;
    // Of this process: whoever calls with something that is no string ends it, as he would have anyway.
    if (!is_stat_path((const char *)(uintptr_t)violation->arguments[1])) return -1;
    // libdispatch's manager does so alone, and reads from one before it opens the next: they may share their position.
    if (lseek(worker_stat, 0, SEEK_SET) != 0) return -1;
    return fcntl(worker_stat, F_DUPFD_CLOEXEC, 0);
}

// What a filter refuses is, as a rule, what no code of this process does: somebody else's code is at work in it, on
// memory that all threads share. So the process ends before the system call has done anything, whichever thread it was.
// A host function that nobody thought of is the exception, which is why a virtual CPU's thread can be told to end the
// guest call alone: then the system call fails, and nothing of the guest runs any more in that call.
static void handle_violation(int signal, siginfo_t *information, void *context) {
    (void)signal;
    int saved_errno = errno;
    // SYS_SECCOMP. Whatever else sends this signal means what it always means.
    if (information->si_code != 1) end_process();
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    struct shim_violation violation = {
        .system_call = information->si_syscall,
        .arguments = {(uint64_t)registers[REG_RDI], (uint64_t)registers[REG_RSI], (uint64_t)registers[REG_RDX],
                      (uint64_t)registers[REG_R10], (uint64_t)registers[REG_R8], (uint64_t)registers[REG_R9]},
        .address = (uint64_t)(uintptr_t)information->si_call_addr,
        .has_happened = true,
    };
    int descriptor = open_worker_stat(&violation);
    if (descriptor >= 0) {
        registers[REG_RAX] = descriptor;
        errno = saved_errno;
        return;
    }
    if (ends_calls && thread_role == SHIM_ROLE_VIRTUAL_CPU && shim_interrupt_end_call(SHIM_REASON_CONFINEMENT)) {
        report(&violation, ". The guest call ends.\n");
        last_violation = violation;
        registers[REG_RAX] = -EPERM;
        errno = saved_errno;
        return;
    }
    report(&violation, ". The process ends.\n");
    end_process();
}

struct shim_violation shim_violation_take(void) {
    struct shim_violation violation = last_violation;
    last_violation.has_happened = false;
    return violation;
}

// The C library's allocator opens a file (/proc/sys/vm/overcommit_memory) before it first gives memory of a thread's
// heap back, and remembers what it says: here it is had to. For that a heap has to have more at its end than the
// allocator keeps. Says in `found` whether this thread's heap is such a one, by a mark in front of what it gives; the
// main heap, which threads get when heaps have become many, has nothing to ask.
static void *give_memory_back(void *found) {
    enum { count = 900, size = 65520, mark = 4 };
    void *volatile *pieces = calloc(count, sizeof *pieces);
    if (!pieces) return NULL;
    int last = 0;
    while (last < count && (pieces[last] = malloc(size))) last++;
    if (last > 0) *(bool *)found = ((const size_t *)pieces[0])[-1] & mark;
    while (last > 0) free(pieces[--last]);
    free((void *)pieces);
    return NULL;
}

static void prepare_allocator(void) {
    // Nor is it to look for the number of processors in a file, when threads have become many.
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    mallopt(M_ARENA_MAX, processors > 0 ? (int)(8 * processors) : 8);
    bool found = false;
    for (int attempt = 0; attempt < 16 && !found; attempt++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, give_memory_back, &found)) return;
        pthread_join(thread, NULL);
    }
}

int shim_violations_install(int descriptor, bool ends, const char *const *names, size_t count) {
    report_descriptor = descriptor;
    ends_calls = ends;
    prepare_allocator();
    prepare_worker_stat();
    for (size_t i = 0; i < count && i < names_maximum; i++) {
        if (names[i]) strncpy(system_call_names[i], names[i], longest_name - 1);
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle_violation;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    // Nothing comes in between, the library's own interruptions included.
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL)) return errno;
    // A thread that blocks the signal is killed for a violation without a word.
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGSYS);
    return pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
}

// ---- Filters ---------------------------------------------------------------------------------------------------

static struct sock_fprog *role_filters[SHIM_ROLE_PAGE_FAULTS + 1];
static _Thread_local bool is_confined;

int shim_filter_set(int role, const void *instructions, size_t bytes) {
    struct sock_fprog *program = malloc(sizeof *program);
    void *copy = malloc(bytes);
    if (!program || !copy) {
        free(program);
        free(copy);
        return ENOMEM;
    }
    memcpy(copy, instructions, bytes);
    *program = (struct sock_fprog){.len = (unsigned short)(bytes / sizeof(struct sock_filter)), .filter = copy};
    // Released to shim_thread_confine. Never freed: threads may come at any time.
    __atomic_store_n(&role_filters[role], program, __ATOMIC_RELEASE);
    return 0;
}

// 0, a negated errno, or the number of a thread that cannot take the filter.
static long install(const struct sock_fprog *program, unsigned flags) {
    // What is refused is also in the kernel's audit log (Linux 4.14).
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_LOG, program);
    if (result < 0 && errno == EINVAL) result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program);
    return result < 0 ? -errno : result;
}

int shim_filter_process(const void *instructions, size_t bytes, int32_t *thread) {
    struct sock_fprog program = {.len = (unsigned short)(bytes / sizeof(struct sock_filter)),
                                 .filter = (struct sock_filter *)instructions};
    long result = install(&program, SECCOMP_FILTER_FLAG_TSYNC);
    *thread = result > 0 ? (int32_t)result : 0;
    return result > 0 ? EBUSY : (int)-result;
}

void shim_thread_confine(int role) {
    if (is_confined) return;
    // Acquiring; partner: shim_filter_set.
    const struct sock_fprog *program = __atomic_load_n(&role_filters[role], __ATOMIC_ACQUIRE);
    if (!program) return;
    if (install(program, 0)) {
        struct line line = {.count = 0};
        append(&line, "microvm: a thread could not be confined. The process ends.\n");
        (void)!write(report_descriptor, line.text, line.count);
        end_process();
    }
    thread_role = role;
    is_confined = true;
}

bool shim_thread_is_confined(void) { return is_confined; }
bool shim_has_no_new_privileges(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1; }
int shim_seccomp_mode(void) { return prctl(PR_GET_SECCOMP, 0, 0, 0, 0); }
bool shim_bounding_capability(int capability) { return prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1; }
bool shim_ambient_capability(int capability) {
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, capability, 0, 0) == 1;
}
