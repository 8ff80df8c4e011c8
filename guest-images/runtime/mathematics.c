/* The part of libm that is a few instructions: rounding, remainders, square roots, and, by the x87 and so right to
 * within a unit in the last place, logarithms and powers. */
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

/* `factor` times the base-2 logarithm. The x87 answers for zero, negatives and infinities as libm does. */
static long double logarithm(long double value, long double factor) {
    long double result;
    __asm__("fyl2x" : "=t"(result) : "0"(value), "u"(factor) : "st(1)");
    return result;
}

double log(double value) {
    long double factor;
    __asm__("fldln2" : "=t"(factor));
    return (double)logarithm(value, factor);
}

double log10(double value) {
    long double factor;
    __asm__("fldlg2" : "=t"(factor));
    return (double)logarithm(value, factor);
}

double log2(double value) { return (double)logarithm(value, 1); }

/* Two to a power of any size. */
static long double power_of_two(long double exponent) {
    if (exponent > 20000)
        return __builtin_infl();
    if (exponent < -20000)
        return 0;
    long double whole = exponent;
    __asm__("frndint" : "+t"(whole));
    long double result = exponent - whole;
    __asm__("f2xm1" : "+t"(result));
    result += 1;
    __asm__("fscale" : "+t"(result) : "u"(whole));
    return result;
}

double exp2(double value) { return value != value ? value : (double)power_of_two(value); }

double exp(double value) {
    long double factor;
    __asm__("fldl2e" : "=t"(factor));
    return value != value ? value : (double)power_of_two(value * factor);
}

double pow(double base, double exponent) {
    if (exponent == 0 || base == 1)
        return 1;
    if (base != base || exponent != exponent)
        return base + exponent;
    bool whole = trunc(exponent) == exponent, odd = whole && fabs(exponent) < 0x1p53 && fmod(exponent, 2) != 0;
    if (base == -1 && __builtin_isinf(exponent))
        return 1;
    if (base < 0 && !whole && !__builtin_isinf(base))
        return __builtin_nan("");
    double magnitude = fabs(base), result;
    if (magnitude == 0 || __builtin_isinf(magnitude))
        result = (magnitude == 0) == (exponent < 0) ? __builtin_inf() : 0;
    else
        result = (double)power_of_two(exponent * logarithm(magnitude, 1));
    return odd && __builtin_signbit(base) ? -result : result;
}

float powf(float base, float exponent) { return (float)pow(base, exponent); }
float expf(float value) { return (float)exp(value); }
float logf(float value) { return (float)log(value); }
float log2f(float value) { return (float)log2(value); }
float log10f(float value) { return (float)log10(value); }

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
