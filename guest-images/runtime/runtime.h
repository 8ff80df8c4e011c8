/* What the parts of the runtime share with each other. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include "microvm.h"

/* Where formatted text goes: `put` is called with pieces of it. */
struct sink {
    void (*put)(struct sink *sink, const char *text, size_t length);
};

/* Formats into the sink and returns the number of bytes, or -1 when it does not fit an int. */
__attribute__((format(printf, 2, 0))) int runtime_format(struct sink *sink, const char *format, va_list arguments);

/* A number in decimal digits; see decimal.c. */
struct decimal {
    int count;       /* digits in the array */
    int point;       /* the value is 0.d1d2d3... times ten to the power of this */
    char digits[780]; /* '0' to '9', the first one not '0' unless the value is zero */
};

/* The exact decimal expansion of a finite double, without its sign. */
void runtime_decimal(double value, struct decimal *decimal);

/* Rounds to `count` digits (0 or less: to nothing, or to a 1 one place higher), half to even. */
void runtime_round(struct decimal *decimal, int count);

/* Aborts the guest with a formatted message. */
__attribute__((noreturn, format(printf, 1, 2))) void runtime_abort(const char *format, ...);

#endif
