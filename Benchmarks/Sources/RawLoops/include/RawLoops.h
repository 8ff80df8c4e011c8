#ifndef RAW_LOOPS_H
#define RAW_LOOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The benchmarks' jobs in the least C that does them on /dev/kvm, to hold the library against.
//
// One VM, one vCPU, one memory slot of 2 MiB that a single large page maps, guest code in ring 3, arguments and
// results by memory, KVM_RUN the only system call of a call in either direction. There is no isolation inside the
// machine, and a fault in the guest is a triple fault: this is the floor, not a sandbox.
//
// Each sampler fills `count` samples, in nanoseconds, and returns 0 or an errno (EPROTO: the guest left in a way, or
// with a result, that was not expected). All vCPUs live on one thread that the first call starts, because a vCPU that
// changes threads pays for it inside KVM. At the beginning of each function that thread goes to where the placement in
// force has virtual CPUs. Call the functions from one thread at a time.

typedef struct raw_module raw_module;
typedef struct raw_machine raw_machine;

/// Opens /dev/kvm, and reads and parses the guest module at `path`: everything that cold_start does not count.
int raw_module_load(const char *path, raw_module **module);
void raw_module_free(raw_module *module);

/// A machine with the module in it, ready to be called.
int raw_machine_create(const raw_module *module, raw_machine **machine);
void raw_machine_destroy(raw_machine *machine);

/// One guest call of `add` with two integers: arguments written, entered, returned, result read and checked.
int raw_guest_call(raw_machine *machine, uint64_t *samples, size_t count);

/// Guest calls of `add`, RAW_BATCH with each entry: a sample is the time of that divided by as many.
#define RAW_BATCH 1024
int raw_stream_calls(raw_machine *machine, uint64_t *samples, size_t count);

/// One host call of a guest that loops over its import: from one exit of the guest to the next.
int raw_host_call(raw_machine *machine, uint64_t *samples, size_t count);

/// One guest call of `fold`: 24 KiB copied in, 8 KiB copied out into a buffer allocated for it.
int raw_fold_call(raw_machine *machine, uint64_t *samples, size_t count);

/// From the parsed module to the first guest call returned; taking the machine down is not counted.
///
/// `add` needs no CPUID, so the least possible is without; `with_cpuid` adds KVM_SET_CPUID2 with all that KVM supports,
/// and KVM_SET_XCRS where there is XSAVE.
int raw_cold_start(const raw_module *module, bool with_cpuid, uint64_t *samples, size_t count);

/// As raw_cold_start without CPUID, but the machines of all samples are there at once; taking them down is not counted.
///
/// Their calls are all on the one thread. `with_threads` begins a thread with each, which does nothing.
int raw_thousand(const raw_module *module, bool with_threads, uint64_t *samples, size_t count);

/// From just before the kick of a guest that spins to its thread having KVM_RUN's return.
///
/// The kicks are a killer's, a millisecond after each entry. Uses up the machine: afterwards it knows no other call.
int raw_kill_latency(raw_machine *machine, uint64_t *samples, size_t count);

/// From just before the kick of a guest that counts to another thread, the one that kicks, having seen that it is out.
///
/// The kicks come a millisecond after the guest was let go on. Uses up the machine: afterwards it knows only this and
/// `raw_continue_latency`.
int raw_stop_latency(raw_machine *machine, uint64_t *samples, size_t count);

/// From just before the thread of a guest that was stopped is woken to another thread having seen that the guest
/// counts.
///
/// The thread has slept for a millisecond by then. Uses up the machine: afterwards it knows only this and
/// `raw_stop_latency`.
int raw_continue_latency(raw_machine *machine, uint64_t *samples, size_t count);

/// One round trip between two threads that sleep on a futex in turn, the answering one in a virtual CPU's place.
int raw_thread_handoff(uint64_t *samples, size_t count);

/// One guest call of `add` that a thread hands to the virtual CPU's thread and sleeps for, on a futex. Each of the two
/// sleeps while the other works, on two processors long enough for an idle one to need waking: more than in a bare
/// hand-off.
int raw_guest_call_hop(raw_machine *machine, uint64_t *samples, size_t count);

/// A machine for calls without an exit: the samplers below have its guest poll a word of its memory on the virtual
/// CPUs' thread, while the calling one writes requests, and polls for the answers. It knows no other calls.
///
/// Only where the two threads run on two processors, because neither leaves its own to the other.
int raw_hot_machine_create(const raw_module *module, raw_machine **machine);

/// One call of `add`: a sample is the time of RAW_HOT_CALLS, one after another, divided by as many, because looking at
/// the clock takes a good part of one.
#define RAW_HOT_CALLS 64
int raw_hot_guest_call(raw_machine *machine, uint64_t *samples, size_t count);

/// The same with a function that makes one host call, for which the guest and the calling thread poll as well.
int raw_hot_host_call(raw_machine *machine, uint64_t *samples, size_t count);

/// What raw_fold_call does, for a sample each.
int raw_hot_fold_call(raw_machine *machine, uint64_t *samples, size_t count);

/// A machine with 16 MiB of memory whose pages can be put back to what they are now.
int raw_restorable_create(const raw_module *module, raw_machine **machine);

/// Putting a machine back after a call that has written `pages` pages, which is not counted: the pages that are no
/// file's are found by PAGEMAP_SCAN and copied back.
int raw_restore(raw_machine *machine, size_t pages, uint64_t *samples, size_t count);

/// The call and putting the machine back.
int raw_call_with_restore(raw_machine *machine, size_t pages, uint64_t *samples, size_t count);

/// The call and dropping the pages instead, so that the next call has them again from the image.
int raw_call_with_refault(raw_machine *machine, size_t pages, uint64_t *samples, size_t count);

/// Finding the pages that a call has written, `pages` of them, and copying them to a new file in memory.
int raw_snapshot(raw_machine *machine, size_t pages, uint64_t *samples, size_t count);

/// One page of 4 KiB that a guest reads and that a thread serves through userfaultfd: a call that reads many, divided.
int raw_lazy_page(raw_machine *machine, uint64_t *samples, size_t count);

/// A new machine with the memory of this one, copied on write, up to its first call returned; its end is not counted.
///
/// `with_cpuid` is as for raw_cold_start.
int raw_fork_first_call(raw_machine *machine, bool with_cpuid, uint64_t *samples, size_t count);

#endif
