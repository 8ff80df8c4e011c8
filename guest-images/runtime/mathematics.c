/* The part of libm that is a few instructions: rounding, remainders, square roots. */
#include "runtime.h"

double fabs(double value) { return __builtin_fabs(value); }
float fabsf(float value) { return __builtin_fabsf(value); }

double sqrt(double value) {
    __asm__("sqrtsd %0, %0" : "+x"(value));
    return value;
}

float sqrtf(float value) {
    __asm__("sqrtss %0, %0" : "+x"(value));
    return value;
}

double trunc(double value) {
    if (!(fabs(value) < 0x1p52))
        return value; /* an integer already, or infinite, or not a number */
    return __builtin_copysign((double)(int64_t)value, value);
}

double floor(double value) {
    double whole = trunc(value);
    return whole > value ? whole - 1 : whole;
}

double ceil(double value) {
    double whole = trunc(value);
    return whole < value ? __builtin_copysign(whole + 1, value) : whole;
}

double round(double value) {
    double whole = trunc(value);
    return fabs(value - whole) >= 0.5 ? whole + __builtin_copysign(1, value) : whole;
}

double rint(double value) {
    if (!(fabs(value) < 0x1p52))
        return value;
    double shift = __builtin_copysign(0x1p52, value);
    __asm__("addsd %1, %0\n\tsubsd %1, %0" : "+x"(value) : "x"(shift)); /* rounds as MXCSR says */
    return __builtin_copysign(value, shift);
}

double nearbyint(double value) { return rint(value); }

double fmod(double value, double divisor) {
    long double left = value, right = divisor;
    __asm__("1: fprem\n\tfnstsw %%ax\n\ttestb $4, %%ah\n\tjnz 1b" : "+t"(left) : "u"(right) : "ax", "cc");
    return (double)left;
}

double fma(double left, double right, double addend) {
    return (double)((long double)left * right + addend); /* rounded twice in rare cases */
}

double fmin(double left, double right) { return left < right || right != right ? left : right; }
double fmax(double left, double right) { return left > right || right != right ? left : right; }

float truncf(float value) { return (float)trunc(value); }
float floorf(float value) { return (float)floor(value); }
float ceilf(float value) { return (float)ceil(value); }
float roundf(float value) { return (float)round(value); }
float rintf(float value) { return (float)rint(value); }
float fmodf(float value, float divisor) { return (float)fmod(value, divisor); }

double modf(double value, double *whole) {
    *whole = trunc(value);
    return __builtin_copysign(__builtin_isinf(value) ? 0 : value - *whole, value);
}

double ldexp(double value, int exponent) {
    long double result = value, scale = exponent;
    __asm__("fscale" : "+t"(result) : "u"(scale));
    return (double)result;
}

double frexp(double value, int *exponent) {
    *exponent = 0;
    if (value == 0 || !__builtin_isfinite(value))
        return value;
    long double significand = value, power;
    __asm__("fxtract" : "=t"(significand), "=u"(power) : "0"(significand));
    *exponent = (int)power + 1;
    return (double)(significand / 2);
}
