#define _GNU_SOURCE
#include "confinement.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// Capabilities and no_new_privs belong to a thread, and only the thread itself can give them up. So each is sent a
// signal: the one by which the C library has all threads change their user, because nothing in a process can block it.
// The C library does not let anybody handle it either, hence the system call, and code to return from the handler.
enum { everybody = 33 };
struct kernel_action {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};
#define RESTORER 0x04000000ul

void shim_return_from_signal(void) __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".type shim_return_from_signal, @function\n"
        "shim_return_from_signal:\n"
        "    mov $15, %eax\n"
        "    syscall\n"
        ".size shim_return_from_signal, . - shim_return_from_signal\n");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    bool capabilities;
    bool new_privileges;
    uint32_t answered;
    int failure;
} request;

static bool has_effective(int capability) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets)) return false;
    return sets[capability / 32].effective >> capability % 32 & 1;
}

static int give_up_own(void) {
    if (request.capabilities) {
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL) return errno;
        // Without this capability the bounding set stays. It limits what execve(2) can gain, which no_new_privs ends.
        if (has_effective(CAP_SETPCAP)) {
            for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
                if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)) return errno;
            }
        }
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct none[2];
        memset(none, 0, sizeof none);
        if (syscall(SYS_capset, &header, none)) return errno;
    }
    if (request.new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return errno;
    return 0;
}

static void answer(int signal) {
    (void)signal;
    int saved_errno = errno;
    request.failure = give_up_own();
    // Released to the thread that has asked.
    __atomic_store_n(&request.answered, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &request.answered, FUTEX_WAKE_PRIVATE, 1);
    errno = saved_errno;
}

// Asks one thread, and waits for its answer. A thread that ends meanwhile has given up everything.
static int ask(pid_t thread) {
    __atomic_store_n(&request.answered, 0, __ATOMIC_RELEASE);
    if (syscall(SYS_tgkill, getpid(), thread, everybody)) return errno == ESRCH ? 0 : errno;
    // A thread answers unless it is held still by a debugger; it is not waited for for ever then.
    for (int attempt = 0; attempt < 1000; attempt++) {
        // Acquiring; partner: `answer`.
        if (__atomic_load_n(&request.answered, __ATOMIC_ACQUIRE)) return request.failure;
        if (syscall(SYS_tgkill, getpid(), thread, 0)) return 0;
        struct timespec time = {0, 10000000};
        syscall(SYS_futex, &request.answered, FUTEX_WAIT_PRIVATE, 0, &time);
    }
    return ETIMEDOUT;
}

// Whether a thread is one that the kernel itself has put into this process, as KVM does for its upkeep. It never runs
// code of the process, and so has no signal handled.
static bool is_kernels_own(pid_t thread) {
    const unsigned long io_worker = 0x10, user_worker = 0x4000;  // PF_IO_WORKER, PF_USER_WORKER
    char text[512];
    snprintf(text, sizeof text, "/proc/self/task/%d/stat", (int)thread);
    int file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    if (count <= 0) return false;
    text[count] = 0;
    // The name, in parentheses, may have anything in it. Behind it: state, five numbers, the flags.
    const char *rest = strrchr(text, ')');
    unsigned long flags;
    return rest && sscanf(rest, ") %*c %*d %*d %*d %*d %*d %lu", &flags) == 1 && flags & (io_worker | user_worker);
}

static bool contains(const pid_t *threads, size_t count, pid_t thread) {
    for (size_t i = 0; i < count; i++) {
        if (threads[i] == thread) return true;
    }
    return false;
}

// Looks through the threads until all that there are have been asked: those that others begin meanwhile inherit what
// their creators have, or are found the next time.
static int ask_all(int32_t *failed) {
    pid_t own = (pid_t)syscall(SYS_gettid);
    pid_t *asked = NULL;
    size_t count = 0;
    int error = 0;
    bool has_changed = true;
    while (has_changed && !error) {
        has_changed = false;
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks) {
            error = errno;
            break;
        }
        struct dirent *entry;
        while (!error && (entry = readdir(tasks))) {
            pid_t thread = atoi(entry->d_name);
            if (thread <= 0 || thread == own || contains(asked, count, thread)) continue;
            pid_t *more = realloc(asked, (count + 1) * sizeof *asked);
            if (!more) {
                error = ENOMEM;
                break;
            }
            asked = more;
            asked[count++] = thread;
            has_changed = true;
            error = is_kernels_own(thread) ? 0 : ask(thread);
            if (error) *failed = thread;
        }
        closedir(tasks);
    }
    free(asked);
    return error;
}

int shim_give_up_privileges(bool capabilities, bool new_privileges, int32_t *thread) {
    *thread = 0;
    pthread_mutex_lock(&lock);
    request.capabilities = capabilities;
    request.new_privileges = new_privileges;
    struct kernel_action action = {answer, RESTORER | SA_RESTART | SA_ONSTACK, shim_return_from_signal, ~0ull};
    struct kernel_action before;
    int error = syscall(SYS_rt_sigaction, everybody, &action, &before, sizeof action.mask) ? errno : 0;
    if (!error) {
        error = ask_all(thread);
        syscall(SYS_rt_sigaction, everybody, &before, NULL, sizeof action.mask);
    }
    // Last, so that the calling thread can still look at /proc where only a capability lets it.
    if (!error) {
        error = give_up_own();
        if (error) *thread = (int32_t)syscall(SYS_gettid);
    }
    pthread_mutex_unlock(&lock);
    return error;
}
