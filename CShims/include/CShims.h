// What Swift cannot import from the C library and the kernel's headers. One prefix: shim_.
#ifndef SWIFT_MICROVM_CSHIMS_H
#define SWIFT_MICROVM_CSHIMS_H

#if !defined(__linux__) || !defined(__x86_64__)
#error "swift-microvm runs on Linux x86-64 only: it needs /dev/kvm and an x86-64 processor."
#endif

#endif
