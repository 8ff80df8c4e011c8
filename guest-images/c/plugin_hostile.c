/* A plugin of the example service that does what it is told, and worse: the first byte of a request names the deed. */
#include "microvm.h"

static void scribble(const uint8_t *bytes, size_t length) {
    struct microvm_span heap = microvm_heap();
    for (size_t i = 0; length && i < heap.length; i += 4096)
        ((volatile uint8_t *)heap.base)[i] = bytes[i % length];
}

struct microvm_span handle(const uint8_t *bytes, size_t length) {
    switch (length ? bytes[0] : 0) {
    case 's': /* spin */
        for (;;)
            __asm__ volatile("pause");
    case 'f': /* fault */ *(volatile uint64_t *)8 = 1; break;
    case 'a': /* abort */ microvm_abort((const char *)bytes, length);
    case 'm': /* use up all memory */ scribble(bytes, length); break;
    case 'l': /* lie about the result */ return (struct microvm_span){(void *)bytes, (size_t)1 << 60};
    case 'p': /* touch a port */ __asm__ volatile("outb %b0, $0x80" : : "a"(0)); break;
    case 'x': /* execute data */ ((void (*)(void))(uintptr_t)bytes)(); break;
    case 'd': /* descend until the stack ends */ {
        volatile uint8_t frame[4096];
        frame[0] = bytes[0];
        struct microvm_span deeper = handle(bytes, length);
        deeper.length += frame[0];
        return deeper;
    }
    }
    return (struct microvm_span){(void *)bytes, length};
}
