#define _GNU_SOURCE
#include "RawLoops.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "Killer.h"
#include "Placement.h"
#include "RawLayout.h"
#include "RawMachine.h"
#include "RawModule.h"
#include "Watch.h"

extern const uint8_t raw_host_thunk[], raw_batch[], raw_trampoline_end[];

// MARK: The machine

static void load(const raw_module *module, uint8_t *memory) {
    for (size_t i = 0; i < module->segment_count; i++) {
        const Elf64_Phdr *segment = &module->segments[i];
        if (segment->p_type == PT_LOAD) {
            memcpy(memory + RAW_IMAGE + segment->p_vaddr, module->file + segment->p_offset, segment->p_filesz);
        }
    }
    raw_link(module, memory, raw_host_thunk);
}

void raw_link(const raw_module *module, uint8_t *memory, const uint8_t *thunk) {
    for (int table = 0; table < 2; table++) {
        for (size_t i = 0; i < module->relocation_counts[table]; i++) {
            const Elf64_Rela *relocation = &module->relocations[table][i];
            const Elf64_Sym *symbol = &module->symbols[ELF64_R_SYM(relocation->r_info)];
            uint64_t value = RAW_IMAGE + (uint64_t)relocation->r_addend;
            if (ELF64_R_TYPE(relocation->r_info) != R_X86_64_RELATIVE) {
                value = symbol->st_shndx == SHN_UNDEF ? raw_guest_address(thunk) : RAW_IMAGE + symbol->st_value;
            }
            *(uint64_t *)(memory + RAW_IMAGE + relocation->r_offset) = value;
        }
    }
}

static void write_system_pages(uint8_t *memory, uint64_t size) {
    const uint64_t present_writable_user = 7, large = 0x80;
    *(uint64_t *)(memory + RAW_PML4) = RAW_PDPT | present_writable_user;
    *(uint64_t *)(memory + RAW_PDPT) = RAW_PAGE_DIRECTORY | present_writable_user;
    for (uint64_t address = 0; address < size; address += RAW_MEMORY_SIZE) {
        *(uint64_t *)(memory + RAW_PAGE_DIRECTORY + address / RAW_MEMORY_SIZE * 8) =
            address | large | present_writable_user;
    }
    // The bitmap follows the 104 bytes of the task state: zero allows the port, and the memory is new.
    *(uint16_t *)(memory + RAW_TASK_STATE + 102) = 104;
    memcpy(memory + RAW_TRAMPOLINE, raw_trampoline, (size_t)(raw_trampoline_end - raw_trampoline));
}

// Ring 3 in long mode, at the trampoline. Ports are open twice over: some KVMs look at the bitmap only, some at the
// I/O privilege level only. The registers reach KVM in the shared page, with the first KVM_RUN.
static void write_registers(const raw_module *module, struct kvm_run *run) {
    struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {
        .limit = 0xffffffff, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .s = 1, .db = 1, .g = 1};
    struct kvm_sregs *system = &run->s.regs.sregs;
    *system = module->reset_registers;
    system->cs = code;
    system->ds = system->es = system->fs = system->gs = system->ss = data;
    system->tr = (struct kvm_segment){
        .base = RAW_TASK_STATE, .limit = 104 + 8, .selector = 0x40, .type = 11, .present = 1};
    system->cr3 = RAW_PML4;
    system->cr4 = 0x620;       // PAE, OSFXSR, OSXMMEXCPT
    system->cr0 = 0x80050033;  // PG, AM, WP, NE, ET, MP, PE
    system->efer = 0x500;      // LMA, LME
    run->s.regs.regs = (struct kvm_regs){.rip = RAW_TRAMPOLINE, .rsp = RAW_STACK_TOP, .rflags = 0x3002};
    run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
}

// Gives the virtual CPU all of the processor that KVM supports: CPUID's leaves, and where these tell of XSAVE, the
// extended state.
static bool give_processor(const raw_module *module, int processor) {
    if (ioctl(processor, KVM_SET_CPUID2, module->cpuid) < 0) {
        return false;
    }
    struct kvm_xcrs registers = {.nr_xcrs = 1};
    bool has_xsave = false;
    for (uint32_t i = 0; i < module->cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &module->cpuid->entries[i];
        if (entry->function == 1) {
            has_xsave = (entry->ecx & 1 << 26) != 0;
        }
        if (entry->function == 0xd && entry->index == 0) {
            registers.xcrs[0].value = entry->eax | (uint64_t)entry->edx << 32;
        }
    }
    return !has_xsave || ioctl(processor, KVM_SET_XCRS, &registers) == 0;
}

int raw_create(const raw_module *module, bool with_cpuid, uint64_t size, int image, raw_machine *machine) {
    *machine = (raw_machine){.module = module,
                             .machine = -1,
                             .processor = -1,
                             .memory = MAP_FAILED,
                             .memory_size = size,
                             .run = MAP_FAILED};
    machine->machine = ioctl(module->kvm, KVM_CREATE_VM, 0);
    if (machine->machine < 0) {
        return errno;
    }
    int flags = MAP_PRIVATE | (image < 0 ? MAP_ANONYMOUS : 0);
    machine->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, image, 0);
    if (machine->memory == MAP_FAILED) {
        return errno;
    }
    if (image < 0) {
        write_system_pages(machine->memory, size);
        load(module, machine->memory);
    }
    struct kvm_userspace_memory_region slot = {.memory_size = size, .userspace_addr = (uint64_t)machine->memory};
    if (ioctl(machine->machine, KVM_SET_USER_MEMORY_REGION, &slot) < 0) {
        return errno;
    }
    machine->processor = ioctl(machine->machine, KVM_CREATE_VCPU, 0);
    if (machine->processor < 0 || (with_cpuid && !give_processor(module, machine->processor))) {
        return errno;
    }
    machine->run =
        mmap(NULL, (size_t)module->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->processor, 0);
    if (machine->run == MAP_FAILED) {
        return errno;
    }
    write_registers(module, machine->run);
    return 0;
}

void raw_destroy(raw_machine *machine) {
    if (machine->run != MAP_FAILED) {
        munmap(machine->run, (size_t)machine->module->run_size);
    }
    if (machine->processor >= 0) {
        close(machine->processor);
    }
    if (machine->machine >= 0) {
        close(machine->machine);
    }
    if (machine->memory != MAP_FAILED) {
        munmap(machine->memory, machine->memory_size);
    }
}

// MARK: Samplers, on the virtual CPUs' thread

static int create_machine(struct job *job) {
    int error = raw_create(job->module, false, RAW_MEMORY_SIZE, -1, job->machine);
    if (error != 0) {
        raw_destroy(job->machine);
    } else if (job->thunk != NULL) {
        raw_link(job->module, job->machine->memory, job->thunk);
    }
    return error;
}

static int destroy_machine(struct job *job) {
    raw_destroy(job->machine);
    return 0;
}

static int guest_call(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        uint64_t start = now();
        bool returned = call_add(job->machine, i, 42);
        job->samples[i] = now() - start;
        if (!returned) {
            return EPROTO;
        }
    }
    return 0;
}

static int stream_calls(struct job *job) {
    raw_machine *machine = job->machine;
    for (size_t i = 0; i < job->count; i++) {
        uint64_t start = now();
        for (size_t call = 0; call < RAW_BATCH; call++) {
            *word(machine, RAW_ARENA + 16 * call) = call;
            *word(machine, RAW_ARENA + 16 * call + 8) = 42;
        }
        *word(machine, RAW_MAILBOX + RAW_FUNCTION) = raw_guest_address(raw_batch);
        *word(machine, RAW_MAILBOX + RAW_FIRST) = RAW_ARENA;
        *word(machine, RAW_MAILBOX + RAW_SECOND) = RAW_BATCH;
        *word(machine, RAW_MAILBOX + RAW_HOST_FIRST) = machine->module->add;
        bool right = enter(machine, RAW_RETURN_PORT);
        for (size_t call = 0; call < RAW_BATCH; call++) {
            right &= *word(machine, RAW_ARENA + 16 * call) == call + 42;
        }
        job->samples[i] = (now() - start) / RAW_BATCH;
        if (!right) {
            return EPROTO;
        }
    }
    return 0;
}

static int host_call(struct job *job) {
    raw_machine *machine = job->machine;
    *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->call_host;
    *word(machine, RAW_MAILBOX + RAW_FIRST) = job->count + 1;
    uint64_t last = 0, sum = 0;
    for (size_t i = 0; i <= job->count; i++) {
        if (!enter(machine, RAW_HOST_PORT)) {
            return EPROTO;
        }
        sum = *word(machine, RAW_MAILBOX + RAW_HOST_FIRST) + *word(machine, RAW_MAILBOX + RAW_HOST_SECOND);
        *word(machine, RAW_MAILBOX + RAW_HOST_RESULT) = sum;
        uint64_t time = now();
        if (i > 0) {
            job->samples[i - 1] = time - last;
        }
        last = time;
    }
    bool returned = enter(machine, RAW_RETURN_PORT);
    uint64_t expected = job->count * (job->count + 1) / 2;
    return returned && sum == expected && *word(machine, RAW_MAILBOX + RAW_RESULT) == expected ? 0 : EPROTO;
}

const uint8_t *raw_fold_input(void) {
    static uint8_t input[FOLD_INPUT];
    uint64_t random = 0x9e3779b97f4a7c15;
    for (size_t i = 0; i < FOLD_INPUT; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        input[i] = (uint8_t)random;
    }
    return input;
}

bool raw_fold_is_right(const uint8_t *input, const uint64_t *output) {
    const uint64_t *words = (const uint64_t *)input;
    bool right = true;
    for (size_t i = 0; i < FOLD_OUTPUT / 8; i++) {
        right &= output[i] == (words[i] ^ (words[i + FOLD_OUTPUT / 8] + words[i + 2 * FOLD_OUTPUT / 8]));
    }
    return right;
}

static int fold_call(struct job *job) {
    const uint8_t *input = raw_fold_input();
    raw_machine *machine = job->machine;
    for (size_t i = 0; i < job->count; i++) {
        uint64_t start = now();
        memcpy(machine->memory + RAW_ARENA, input, FOLD_INPUT);
        *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->fold;
        *word(machine, RAW_MAILBOX + RAW_FIRST) = RAW_ARENA;
        *word(machine, RAW_MAILBOX + RAW_SECOND) = FOLD_INPUT;
        bool returned = enter(machine, RAW_RETURN_PORT);
        uint64_t base = *word(machine, RAW_MAILBOX + RAW_RESULT);
        uint64_t length = *word(machine, RAW_MAILBOX + RAW_RESULT_LENGTH);
        if (!returned || length != FOLD_OUTPUT || base > RAW_MEMORY_SIZE - FOLD_OUTPUT) {
            return EPROTO;
        }
        uint64_t *output = malloc(length);
        if (output == NULL) {
            return ENOMEM;
        }
        memcpy(output, machine->memory + base, length);
        job->samples[i] = now() - start;
        bool right = raw_fold_is_right(input, output);
        free(output);
        if (!right) {
            return EPROTO;
        }
    }
    return 0;
}

static int cold_start(struct job *job) {
    for (size_t i = 0; i < job->count; i++) {
        raw_machine machine;
        uint64_t start = now();
        int error = raw_create(job->module, job->with_cpuid, RAW_MEMORY_SIZE, -1, &machine);
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

// MARK: The virtual CPUs' thread

static pthread_once_t worker_once = PTHREAD_ONCE_INIT;
static sem_t worker_wanted, worker_finished;
static struct job *worker_job;
static int worker_error, worker_result;
static pid_t worker_thread;

static void await(sem_t *semaphore) {
    while (sem_wait(semaphore) < 0 && errno == EINTR) {
    }
}

static void *work(void *unused) {
    (void)unused;
    worker_thread = (pid_t)syscall(SYS_gettid);
    for (;;) {
        await(&worker_wanted);
        int error = placement_adopt_guest();
        // In any case, because whoever began the job may wait for its thread in the middle of it.
        worker_result = worker_job->body(worker_job);
        if (worker_result == 0) {
            worker_result = error;
        }
        sem_post(&worker_finished);
    }
    return NULL;
}

static void start_worker(void) {
    sem_init(&worker_wanted, 0, 0);
    sem_init(&worker_finished, 0, 0);
    pthread_t thread;
    worker_error = pthread_create(&thread, NULL, work, NULL);
    if (worker_error == 0) {
        pthread_detach(thread);
    }
}

int raw_begin(struct job *job) {
    pthread_once(&worker_once, start_worker);
    if (worker_error == 0) {
        worker_job = job;
        sem_post(&worker_wanted);
    }
    return worker_error;
}

int raw_finish(void) {
    await(&worker_finished);
    return worker_result;
}

int raw_perform(struct job job) {
    int error = raw_begin(&job);
    return error != 0 ? error : raw_finish();
}

int raw_machine_create_with(const raw_module *module, const uint8_t *thunk, raw_machine **result) {
    raw_machine *machine = malloc(sizeof(raw_machine));
    if (machine == NULL) {
        return ENOMEM;
    }
    int error =
        raw_perform((struct job){.body = create_machine, .module = module, .machine = machine, .thunk = thunk});
    if (error != 0) {
        free(machine);
        return error;
    }
    *result = machine;
    return 0;
}

int raw_machine_create(const raw_module *module, raw_machine **result) {
    return raw_machine_create_with(module, NULL, result);
}

void raw_machine_destroy(raw_machine *machine) {
    raw_perform((struct job){.body = destroy_machine, .machine = machine});
    free(machine);
}

int raw_guest_call(raw_machine *machine, uint64_t *samples, size_t count) {
    return raw_perform((struct job){.body = guest_call, .machine = machine, .samples = samples, .count = count});
}

int raw_stream_calls(raw_machine *machine, uint64_t *samples, size_t count) {
    return raw_perform((struct job){.body = stream_calls, .machine = machine, .samples = samples, .count = count});
}

int raw_host_call(raw_machine *machine, uint64_t *samples, size_t count) {
    return raw_perform((struct job){.body = host_call, .machine = machine, .samples = samples, .count = count});
}

int raw_fold_call(raw_machine *machine, uint64_t *samples, size_t count) {
    return raw_perform((struct job){.body = fold_call, .machine = machine, .samples = samples, .count = count});
}

int raw_cold_start(const raw_module *module, bool with_cpuid, uint64_t *samples, size_t count) {
    return raw_perform((struct job){
        .body = cold_start, .module = module, .with_cpuid = with_cpuid, .samples = samples, .count = count});
}

// MARK: Kills

static void do_nothing(int number) {
    (void)number;
}

// Clear of the first real-time signals, which the library takes.
static int kick_number(void) {
    return SIGRTMIN + 7;
}

static kill_outcome kick(void *context) {
    raw_machine *machine = context;
    __atomic_store_n(&machine->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_tgkill, getpid(), worker_thread, kick_number());
    return KILL_IN_GUEST;
}

static int allow_kicks(void) {
    struct sigaction action = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};
    return sigaction(kick_number(), &action, NULL) < 0 ? errno : 0;
}

// Whoever started this thread may have had every signal blocked, as Dispatch's threads have.
static void unblock_kicks(void) {
    sigset_t number;
    sigemptyset(&number);
    sigaddset(&number, kick_number());
    pthread_sigmask(SIG_UNBLOCK, &number, NULL);
}

// Enters the guest `count` times and once more, each time until it is kicked out. The first time is no sample, because
// it brings the guest into its loop.
static int kill_latency(struct job *job) {
    raw_machine *machine = job->machine;
    unblock_kicks();
    *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->spin;
    for (size_t i = 0; i <= job->count; i++) {
        // Before the killer is let go, so that no kick is wiped out.
        __atomic_store_n(&machine->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        killer_order(job->killer, kick, machine);
        bool interrupted = ioctl(machine->processor, KVM_RUN, 0) < 0 && errno == EINTR;
        uint64_t end = now();
        uint64_t start = killer_finish(job->killer);
        if (!interrupted) {
            return EPROTO;
        }
        if (i > 0) {
            job->samples[i - 1] = end - start;
        }
    }
    return 0;
}

int raw_kill_latency(raw_machine *machine, uint64_t *samples, size_t count) {
    struct job job = {.body = kill_latency, .machine = machine, .samples = samples, .count = count};
    int error = allow_kicks();
    if (error == 0) {
        error = killer_create(&job.killer);
    }
    if (error == 0) {
        error = raw_perform(job);
        killer_destroy(job.killer);
    }
    return error;
}

// MARK: Stops

// Where the guest is, or shall be; the job's own thread is the guest's.
enum { GUEST_OUT, GUEST_GOES_ON, GUEST_ENDS };
static _Atomic uint32_t held;

static int run_counting_guest(struct job *job) {
    raw_machine *machine = job->machine;
    unblock_kicks();
    for (;;) {
        while (atomic_load(&held) == GUEST_OUT) {
            syscall(SYS_futex, &held, FUTEX_WAIT_PRIVATE, GUEST_OUT, NULL, NULL, 0);
        }
        if (atomic_load(&held) == GUEST_ENDS) {
            return 0;
        }
        // Before the guest can be seen to run, so that no kick is wiped out.
        __atomic_store_n(&machine->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        do {
            if (ioctl(machine->processor, KVM_RUN, 0) == 0 || errno != EINTR) {
                return EPROTO;
            }
        } while (__atomic_load_n(&machine->run->immediate_exit, __ATOMIC_SEQ_CST) == 0);
        atomic_store(&held, GUEST_OUT);
    }
}

static void set_held(uint32_t value) {
    atomic_store(&held, value);
    syscall(SYS_futex, &held, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

// Whether the guest's thread has said in some seconds that the guest is out.
static bool await_out(void) {
    for (uint64_t looks = 0; looks < WATCH_LOOKS; looks++) {
        if (atomic_load(&held) == GUEST_OUT) {
            return true;
        }
        sched_yield();
    }
    return false;
}

static int find_counter(struct job *job) {
    raw_machine *machine = job->machine;
    *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->counter_address;
    if (!enter(machine, RAW_RETURN_PORT) || *word(machine, RAW_MAILBOX + RAW_RESULT) > RAW_MEMORY_SIZE - 8) {
        return EPROTO;
    }
    machine->counter = *word(machine, RAW_MAILBOX + RAW_RESULT);
    *word(machine, RAW_MAILBOX + RAW_FUNCTION) = machine->module->count_up;
    return 0;
}

// Lets the guest go on and stops it `count` times and once more. The first time is no sample, because it brings the
// guest into its loop. Either array may be missing.
static int stop_and_go(raw_machine *machine, uint64_t *stops, uint64_t *continuations, size_t count) {
    int error = allow_kicks();
    if (error == 0 && machine->counter == 0) {
        error = raw_perform((struct job){.body = find_counter, .machine = machine});
    }
    if (error != 0) {
        return error;
    }
    const uint8_t *counter = machine->memory + machine->counter;
    atomic_store(&held, GUEST_OUT);
    struct job job = {.body = run_counting_guest, .machine = machine};
    error = raw_begin(&job);
    if (error != 0) {
        return error;
    }
    bool good = true;
    for (size_t i = 0; good && i <= count; i++) {
        watch_pause();
        uint64_t last = watch_word(counter);
        uint64_t start = now();
        set_held(GUEST_GOES_ON);
        good = watch_until_changed(counter, last);
        if (i > 0 && continuations != NULL) {
            continuations[i - 1] = now() - start;
        }

        watch_pause();
        start = now();
        kick(machine);
        good = good && await_out();
        if (i > 0 && stops != NULL) {
            stops[i - 1] = now() - start;
        }
    }
    set_held(GUEST_ENDS);
    error = raw_finish();
    return error == 0 && !good ? EPROTO : error;
}

int raw_stop_latency(raw_machine *machine, uint64_t *samples, size_t count) {
    return stop_and_go(machine, samples, NULL, count);
}

int raw_continue_latency(raw_machine *machine, uint64_t *samples, size_t count) {
    return stop_and_go(machine, NULL, samples, count);
}

// MARK: Hand-offs

struct handoff {
    // Whose turn it is: 0 the asker's, 1 the answerer's.
    _Atomic uint32_t turn;
    size_t count;
    // The answerer's, to be read when it has ended.
    int error;
};

static void hand_over(struct handoff *handoff, uint32_t other) {
    atomic_store(&handoff->turn, other);
    syscall(SYS_futex, &handoff->turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void await_turn(struct handoff *handoff, uint32_t own) {
    while (atomic_load(&handoff->turn) != own) {
        syscall(SYS_futex, &handoff->turn, FUTEX_WAIT_PRIVATE, 1 - own, NULL, NULL, 0);
    }
}

static void *answer(void *argument) {
    struct handoff *handoff = argument;
    handoff->error = placement_adopt_guest();
    for (size_t i = 0; i < handoff->count; i++) {
        await_turn(handoff, 1);
        hand_over(handoff, 0);
    }
    return NULL;
}

int raw_thread_handoff(uint64_t *samples, size_t count) {
    struct handoff handoff = {.count = count + 1};
    pthread_t thread;
    int error = pthread_create(&thread, NULL, answer, &handoff);
    if (error != 0) {
        return error;
    }
    // One round more than samples: the first waits for the thread to start.
    for (size_t i = 0; i <= count; i++) {
        uint64_t start = now();
        hand_over(&handoff, 1);
        await_turn(&handoff, 0);
        if (i > 0) {
            samples[i - 1] = now() - start;
        }
    }
    error = pthread_join(thread, NULL);
    return error != 0 ? error : handoff.error;
}

// MARK: A guest call on another thread

// What the two threads share; the job's own thread answers.
static struct handoff hop;

static int answer_with_guest_calls(struct job *job) {
    for (size_t i = 0; i < hop.count; i++) {
        await_turn(&hop, 1);
        bool good = call_add(job->machine, i, 1);
        hand_over(&hop, 0);
        if (!good) {
            return EPROTO;
        }
    }
    return 0;
}

int raw_guest_call_hop(raw_machine *machine, uint64_t *samples, size_t count) {
    hop.count = count + 1;
    atomic_store(&hop.turn, 0);
    struct job job = {.body = answer_with_guest_calls, .machine = machine, .samples = samples, .count = count};
    int error = raw_begin(&job);
    if (error != 0) {
        return error;
    }
    for (size_t i = 0; i <= count; i++) {
        uint64_t start = now();
        hand_over(&hop, 1);
        await_turn(&hop, 0);
        if (i > 0) {
            samples[i - 1] = now() - start;
        }
    }
    return raw_finish();
}
