// Memory that is put back after a call, as one would do it by hand.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "Placement.h"
#include "RawMachine.h"

#define MEMORY_SIZE (8 * RAW_MEMORY_SIZE)
#define PAGE 4096

// Linux 6.7; include/uapi/linux/fs.h.
struct page_run {
    uint64_t start, end, categories;
};
struct scan_arguments {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_REQUEST _IOWR('f', 16, struct scan_arguments)
enum { is_file = 1 << 2, is_present = 1 << 3, is_swapped = 1 << 4, is_zero = 1 << 5 };

// One at a time: the machine whose image this is.
static int image = -1, pagemap = -1;
static uint8_t *saved;

static int make_restorable(struct job *job) {
    raw_machine first;
    int error = raw_create(job->module, false, MEMORY_SIZE, -1, &first);
    image = memfd_create("raw-image", MFD_CLOEXEC);
    pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (error == 0 && (image < 0 || pagemap < 0 || ftruncate(image, MEMORY_SIZE) < 0)) {
        error = errno;
    }
    // What has been written, and nothing more, so that the rest stays a hole.
    for (uint64_t page = 0; error == 0 && page < RAW_STACK_TOP; page += PAGE) {
        static const uint8_t zeros[PAGE];
        if (memcmp(first.memory + page, zeros, PAGE) != 0 &&
            pwrite(image, first.memory + page, PAGE, (off_t)page) != PAGE) {
            error = errno;
        }
    }
    raw_destroy(&first);
    if (error == 0) {
        saved = mmap(NULL, MEMORY_SIZE, PROT_READ, MAP_SHARED, image, 0);
        error = saved == MAP_FAILED ? errno : raw_create(job->module, false, MEMORY_SIZE, image, job->machine);
    }
    return error;
}

int raw_restorable_create(const raw_module *module, raw_machine **result) {
    raw_machine *machine = calloc(1, sizeof *machine);
    if (machine == NULL) {
        return ENOMEM;
    }
    *result = machine;
    return raw_perform((struct job){.body = make_restorable, .module = module, .machine = machine});
}

static bool call_write_pages(raw_machine *machine, size_t pages) {
    *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->write_pages;
    *word(machine, RAW_MAILBOX + RAW_FIRST) = RAW_STACK_TOP;
    *word(machine, RAW_MAILBOX + RAW_SECOND) = pages;
    return enter(machine, RAW_RETURN_PORT);
}

// Calls `body` with each run of pages that are the machine's own; the number of pages, or -1.
static long for_each_run(raw_machine *machine, void (*body)(raw_machine *, uint64_t, uint64_t, void *), void *context) {
    uint64_t base = (uint64_t)machine->memory, position = base, end = base + machine->memory_size;
    long pages = 0;
    while (position < end) {
        struct page_run runs[128];
        struct scan_arguments arguments = {.size = sizeof arguments,
                                           .start = position,
                                           .end = end,
                                           .vec = (uint64_t)runs,
                                           .vec_len = 128,
                                           .category_inverted = is_file | is_zero,
                                           .category_mask = is_file | is_zero,
                                           .category_anyof_mask = is_present | is_swapped,
                                           .return_mask = is_file};
        int found = ioctl(pagemap, SCAN_REQUEST, &arguments);
        if (found < 0) {
            return -1;
        }
        for (int i = 0; i < found; i++) {
            body(machine, runs[i].start - base, runs[i].end - base, context);
            pages += (long)((runs[i].end - runs[i].start) / PAGE);
        }
        position = arguments.walk_end;
    }
    return pages;
}

static void copy_back(raw_machine *machine, uint64_t start, uint64_t end, void *context) {
    (void)context;
    memcpy(machine->memory + start, saved + start, end - start);
}

struct copy {
    int file;
    off_t size;
    bool failed;
};

static void copy_out(raw_machine *machine, uint64_t start, uint64_t end, void *context) {
    struct copy *copy = context;
    ssize_t count = (ssize_t)(end - start);
    copy->failed |= pwrite(copy->file, machine->memory + start, (size_t)count, copy->size) != count;
    copy->size += count;
}

static int restore(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        if (!call_write_pages(job->machine, job->pages)) {
            return EPROTO;
        }
        uint64_t start = now();
        long pages = for_each_run(job->machine, copy_back, NULL);
        job->samples[i] = now() - start;
        if (pages < (long)job->pages) {
            return EPROTO;
        }
    }
    return 0;
}

static int call_with_restore(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        uint64_t start = now();
        bool returned = call_write_pages(job->machine, job->pages);
        long pages = for_each_run(job->machine, copy_back, NULL);
        job->samples[i] = now() - start;
        if (!returned || pages < (long)job->pages) {
            return EPROTO;
        }
    }
    return 0;
}

static int call_with_refault(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        uint64_t start = now();
        bool returned = call_write_pages(job->machine, job->pages);
        int error = madvise(job->machine->memory, job->machine->memory_size, MADV_DONTNEED);
        job->samples[i] = now() - start;
        if (!returned || error < 0) {
            return EPROTO;
        }
    }
    return 0;
}

static int snapshot(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        if (!call_write_pages(job->machine, job->pages)) {
            return EPROTO;
        }
        uint64_t start = now();
        struct copy copy = {.file = memfd_create("raw-snapshot", MFD_CLOEXEC)};
        long pages = for_each_run(job->machine, copy_out, &copy);
        job->samples[i] = now() - start;
        close(copy.file);
        if (copy.failed || pages < (long)job->pages) {
            return EPROTO;
        }
    }
    return 0;
}

static int fork_first_call(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        raw_machine machine;
        uint64_t start = now();
        int error = raw_create(job->machine->module, job->with_cpuid, MEMORY_SIZE, image, &machine);
        if (error == 0 && !call_add(&machine, i, 42)) {
            error = EPROTO;
        }
        job->samples[i] = now() - start;
        raw_destroy(&machine);
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

// MARK: Pages that come when they are touched

// Behind all that the other loops use.
#define LAZY_PAGES 0x800000
#define LAZY_COUNT 256

// Serves so many pages, each with the same bytes.
static void *serve(void *descriptor) {
    static uint8_t page[PAGE] __attribute__((aligned(PAGE))) = {1};
    for (int served = 0; served < LAZY_COUNT;) {
        struct uffd_msg message;
        if (read(*(int *)descriptor, &message, sizeof message) != sizeof message) {
            return descriptor;
        }
        struct uffdio_copy copy = {
            .dst = message.arg.pagefault.address & ~(uint64_t)(PAGE - 1), .src = (uint64_t)page, .len = PAGE};
        if (message.event == UFFD_EVENT_PAGEFAULT && ioctl(*(int *)descriptor, UFFDIO_COPY, &copy) == 0) {
            served++;
        }
    }
    return NULL;
}

static int lazy_page(struct job *job) {
    raw_machine *machine = job->machine;
    for (size_t i = 0; i < job->count; i++) {
        uint8_t *pages = machine->memory + LAZY_PAGES;
        if (mmap(pages, LAZY_COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
            MAP_FAILED) {
            return errno;
        }
        int descriptor = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
        struct uffdio_api api = {.api = UFFD_API};
        struct uffdio_register range = {.range = {.start = (uint64_t)pages, .len = LAZY_COUNT * PAGE},
                                        .mode = UFFDIO_REGISTER_MODE_MISSING};
        pthread_t server;
        if (descriptor < 0 || ioctl(descriptor, UFFDIO_API, &api) < 0 ||
            ioctl(descriptor, UFFDIO_REGISTER, &range) < 0 ||
            (errno = pthread_create(&server, NULL, serve, &descriptor)) != 0) {
            return errno;
        }
        // Not where the guest is, which is where it was begun.
        placement_leave_guest(server);
        uint64_t start = now();
        *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->read_pages;
        *word(machine, RAW_MAILBOX + RAW_FIRST) = LAZY_PAGES;
        *word(machine, RAW_MAILBOX + RAW_SECOND) = LAZY_COUNT;
        bool returned = enter(machine, RAW_RETURN_PORT);
        job->samples[i] = (now() - start) / LAZY_COUNT;
        void *failure;
        pthread_join(server, &failure);
        close(descriptor);
        if (!returned || failure != NULL || *word(machine, RAW_MAILBOX + RAW_RESULT) != LAZY_COUNT) {
            return EPROTO;
        }
    }
    return 0;
}

static int run(int (*body)(struct job *), raw_machine *machine, size_t pages, uint64_t *samples, size_t count) {
    return raw_perform(
        (struct job){.body = body, .machine = machine, .pages = pages, .samples = samples, .count = count});
}

int raw_restore(raw_machine *machine, size_t pages, uint64_t *samples, size_t count) {
    return run(restore, machine, pages, samples, count);
}

int raw_call_with_restore(raw_machine *machine, size_t pages, uint64_t *samples, size_t count) {
    return run(call_with_restore, machine, pages, samples, count);
}

int raw_call_with_refault(raw_machine *machine, size_t pages, uint64_t *samples, size_t count) {
    return run(call_with_refault, machine, pages, samples, count);
}

int raw_snapshot(raw_machine *machine, size_t pages, uint64_t *samples, size_t count) {
    return run(snapshot, machine, pages, samples, count);
}

int raw_lazy_page(raw_machine *machine, uint64_t *samples, size_t count) {
    return run(lazy_page, machine, 0, samples, count);
}

int raw_fork_first_call(raw_machine *machine, bool with_cpuid, uint64_t *samples, size_t count) {
    return raw_perform((struct job){
        .body = fork_first_call, .machine = machine, .with_cpuid = with_cpuid, .samples = samples, .count = count});
}
