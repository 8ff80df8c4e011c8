#ifndef RAW_SYSTEM_CALLS_H
#define RAW_SYSTEM_CALLS_H

// One system call by its number, as syscall(2) makes it, which Swift does not import. What the kernel has returned: a
// negated error number where it has failed.
long raw_system_call(long number, long first, long second, long third, long fourth, long fifth);

// Numbers of system calls, and constants for their arguments, by the names that the kernel's headers have for them; -1
// for an unknown one.
long system_call_number(const char *name);
long unlisted_virtual_cpu_request(void);

#endif
