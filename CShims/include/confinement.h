// Confinement: system call filters for each role, what happens when one is violated, and privileges given up by all
// threads at once. The filters themselves are made elsewhere, by libseccomp; nothing here needs it.
#ifndef SWIFT_MICROVM_CONFINEMENT_H
#define SWIFT_MICROVM_CONFINEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Whose threads a filter is for.
#define SHIM_ROLE_PROCESS 0
#define SHIM_ROLE_VIRTUAL_CPU 1
#define SHIM_ROLE_PAGE_FAULTS 2

// A system call that no filter permits and no kernel has had for long: it ends the process, by SIGSYS.
#define SHIM_DEADLY_SYSTEM_CALL "vserver"

// Requests of ioctl(2), by what they are for.
#define SHIM_REQUESTS_VIRTUAL_CPU 0    // what a virtual CPU's thread does with it
#define SHIM_REQUESTS_MEMORY 1         // a virtual machine's memory
#define SHIM_REQUESTS_MACHINE 2        // making virtual machines and virtual CPUs
#define SHIM_REQUESTS_PAGES 3          // page faults served, pages found that were written
#define SHIM_REQUESTS_TERMINAL 4       // terminals and pipes looked at, and the mode of a terminal
#define SHIM_REQUESTS_TERMINAL_SIZE 5  // whether something is a terminal

struct shim_requests {
    const uint32_t *_Nonnull values;
    size_t count;
};
struct shim_requests shim_requests(int group);
uint32_t shim_request_run(void);

// What was attempted against a filter.
struct shim_violation {
    int64_t system_call;
    uint64_t arguments[6];
    uint64_t address;
    bool has_happened;
};

// Installs the handler of violations. Each writes a line to `descriptor` and ends the process by SIGSYS; where
// `ends_calls`, one on a virtual CPU's thread in a guest call fails the system call with EPERM instead, and the call is
// asked to end. `names` are those of the system calls from 0 on, null where there is none; each is copied. 0 or an
// errno.
int shim_violations_install(int descriptor, bool ends_calls, const char *_Nullable const *_Nonnull names, size_t count);
// The calling thread's last violation that did not end the process; it is forgotten.
struct shim_violation shim_violation_take(void);
// Copies a system call's name.
const char *_Nullable shim_system_call_name(int64_t number);

// Sets the filter that threads of a role other than the process's enter with shim_thread_confine: `bytes` of BPF
// instructions, which are copied. Once for each role. 0 or an errno.
int shim_filter_set(int role, const void *_Nonnull instructions, size_t bytes);
// Puts the filter on all threads of the process, and on all that they begin. 0 or an errno; *thread is the one that
// could not take it, if it was one.
int shim_filter_process(const void *_Nonnull instructions, size_t bytes, int32_t *_Nonnull thread);

// Puts the filter of its role on the calling thread, if one has been set and the thread has none yet. Ends the process
// when that fails: the thread would go on without.
void shim_thread_confine(int role);
// Whether the calling thread has a filter of its own.
bool shim_thread_is_confined(void);

// Gives up privileges on all threads of the process: all capabilities (of the bounding set those that may be dropped),
// and the gain of new ones by execve(2) (no_new_privs). 0 or an errno; *thread is the one where it failed.
int shim_give_up_privileges(bool capabilities, bool new_privileges, int32_t *_Nonnull thread);
// PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP of the calling thread.
bool shim_has_no_new_privileges(void);
int shim_seccomp_mode(void);
// Whether a capability is in the bounding set, or in the ambient one.
bool shim_bounding_capability(int capability);
bool shim_ambient_capability(int capability);

// Errands: what a confined thread may not do is done for it by a thread that has the process's filter only.

// Begins that thread, once. From now on tasks that a confined thread makes runnable are handed to their executors
// there: an executor may have to begin a thread, which would inherit the filter of whoever begins it. Those of a nice
// thread are, too. 0 or an errno.
int shim_errands_start(void);
// Adds to the calling thread's nice value, for good. The errands' thread must have been begun.
void shim_thread_make_nice(int increment);
// Runs the body on that thread, and returns when it has run; on the calling thread where that is not confined.
void shim_errand_run(void (*_Nonnull body)(void *_Nullable), void *_Nullable context);

#endif
