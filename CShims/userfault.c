#define _GNU_SOURCE
#include "userfault.h"

#include "interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

// Newer than the oldest headers this builds with.
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

// Request numbers carry the size of their argument.
_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg");
_Static_assert(sizeof(struct uffdio_api) == 24, "struct uffdio_api");
_Static_assert(sizeof(struct uffdio_register) == 32, "struct uffdio_register");
_Static_assert(sizeof(struct uffdio_copy) == 40, "struct uffdio_copy");
_Static_assert(sizeof(struct uffdio_zeropage) == 32, "struct uffdio_zeropage");

// The device, where it is kept open for when no file can be opened any more.
enum { opened_each_time = -1, out_of_reach = -2 };
static int kept_device = opened_each_time;

void shim_userfault_confine(bool keeps_device) {
    int device = keeps_device ? open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) : -1;
    // Whoever loads the number only uses it.
    __atomic_store_n(&kept_device, device >= 0 ? device : out_of_reach, __ATOMIC_RELAXED);
}

// The device (Linux 6.1) goes by the permissions of a file. The system call goes by a capability or a setting.
static int open_descriptor(void) {
    int kept = __atomic_load_n(&kept_device, __ATOMIC_RELAXED);
    // The process may open nothing any more, and make no system call that is not needed.
    if (kept == out_of_reach) return -EPERM;
    if (kept != opened_each_time) {
        int descriptor = ioctl(kept, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        return descriptor < 0 ? -errno : descriptor;
    }
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
        int descriptor = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
        if (descriptor >= 0) return descriptor;
    }
    long descriptor = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    return descriptor < 0 ? -errno : (int)descriptor;
}

int shim_userfault_open(void) {
    int descriptor = open_descriptor();
    if (descriptor < 0) return descriptor;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_UNMAP};
    if (ioctl(descriptor, UFFDIO_API, &api)) {
        int error = errno;
        close(descriptor);
        return -error;
    }
    return descriptor;
}

int shim_userfault_register(int descriptor, uint64_t start, uint64_t count) {
    struct uffdio_register request = {.range = {start, count}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(descriptor, UFFDIO_REGISTER, &request)) return -errno;
    const uint64_t needed = 1ull << _UFFDIO_WAKE | 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE;
    if ((request.ioctls & needed) == needed) return 0;
    shim_userfault_unregister(descriptor, start, count);
    return -EOPNOTSUPP;
}

int shim_userfault_unregister(int descriptor, uint64_t start, uint64_t count) {
    struct uffdio_range range = {start, count};
    return ioctl(descriptor, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int64_t shim_userfault_copy(int descriptor, uint64_t to, const void *from, uint64_t count) {
    struct uffdio_copy request = {.dst = to, .src = (uintptr_t)from, .len = count};
    if (!ioctl(descriptor, UFFDIO_COPY, &request)) return (int64_t)count;
    return errno == EAGAIN && request.copy > 0 ? request.copy : -errno;
}

int64_t shim_userfault_zero(int descriptor, uint64_t to, uint64_t count) {
    struct uffdio_zeropage request = {.range = {to, count}};
    if (!ioctl(descriptor, UFFDIO_ZEROPAGE, &request)) return (int64_t)count;
    return errno == EAGAIN && request.zeropage > 0 ? request.zeropage : -errno;
}

int shim_userfault_wake(int descriptor, uint64_t start, uint64_t count) {
    struct uffdio_range range = {start, count};
    return ioctl(descriptor, UFFDIO_WAKE, &range) ? -errno : 0;
}

int shim_userfault_read(int descriptor, struct shim_userfault_message *message) {
    struct uffd_msg event;
    ssize_t count;
    do {
        count = read(descriptor, &event, sizeof event);
    } while (count < 0 && errno == EINTR);
    if (count != sizeof event) return SHIM_USERFAULT_NOTHING;
    switch (event.event) {
    case UFFD_EVENT_PAGEFAULT:
        message->start = event.arg.pagefault.address;
        return SHIM_USERFAULT_FAULT;
    case UFFD_EVENT_UNMAP:
        message->start = event.arg.remove.start;
        message->end = event.arg.remove.end;
        return SHIM_USERFAULT_UNMAPPED;
    default:
        return SHIM_USERFAULT_OTHER;
    }
}

int shim_event_open(void) {
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return event < 0 ? -errno : event;
}

// Neither can fail but for having been done already.
void shim_event_set(int event) { (void)!write(event, &(uint64_t){1}, sizeof(uint64_t)); }
void shim_event_reset(int event) { (void)!read(event, &(uint64_t){0}, sizeof(uint64_t)); }

void shim_event_wait(int descriptor, int event, int milliseconds) {
    struct pollfd descriptors[] = {{.fd = descriptor, .events = POLLIN}, {.fd = event, .events = POLLIN}};
    poll(descriptors, 2, milliseconds);
}

int shim_populate(uint64_t start, uint64_t count, int for_writing) {
    int advice = for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    return madvise((void *)start, count, advice) ? -errno : 0;
}

int shim_accept(int listener) {
    int descriptor = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    return descriptor >= 0 ? descriptor : -errno;
}

struct helper_start {
    void *(*start)(void *);
    void *argument;
    char name[16];  // as long as the kernel lets it be
};

static void *begin_helper(void *argument) {
    struct helper_start start = *(struct helper_start *)argument;
    free(argument);
    // By the thread itself no file is needed for it, which a confined process could not open.
    prctl(PR_SET_NAME, start.name);
    return start.start(start.argument);
}

int shim_helper_thread_create(pthread_t *thread, const char *name, void *(*start)(void *), void *argument) {
    sigset_t mask;
    shim_own_thread_mask(&mask);
    struct helper_start *block = malloc(sizeof *block);
    if (!block) return ENOMEM;
    *block = (struct helper_start){.start = start, .argument = argument};
    strncpy(block->name, name, sizeof block->name - 1);
    pthread_attr_t attributes;
    int result = pthread_attr_init(&attributes);
    if (!result) {
        result = pthread_attr_setsigmask_np(&attributes, &mask);
        if (!result) result = pthread_create(thread, &attributes, begin_helper, block);
        pthread_attr_destroy(&attributes);
    }
    if (result) free(block);
    return result;
}
