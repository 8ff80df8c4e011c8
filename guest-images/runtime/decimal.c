/* Exact decimal digits of binary floating point. A finite double is m * 2^e with an integer m; for e < 0 that is
 * m * 5^-e / 10^-e, so multiplying m by powers of two or of five gives all its digits (at most 767). */
#include "runtime.h"

enum { limb_base = 1000000000, limb_digits = 9, limb_limit = 90 };

struct number {
    int count;
    uint32_t limbs[limb_limit]; /* least significant first */
};

static void multiply(struct number *number, uint32_t factor) {
    uint64_t carry = 0;
    for (int i = 0; i < number->count; i++) {
        uint64_t product = (uint64_t)number->limbs[i] * factor + carry;
        number->limbs[i] = (uint32_t)(product % limb_base);
        carry = product / limb_base;
    }
    for (; carry; carry /= limb_base)
        number->limbs[number->count++] = (uint32_t)(carry % limb_base);
}

void runtime_decimal(double value, struct decimal *decimal) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7ff);
    uint64_t mantissa = bits & 0xfffffffffffff;
    if (exponent)
        mantissa |= 1ull << 52;
    else
        exponent = 1;
    exponent -= 1075;
    decimal->count = 1;
    decimal->point = 1;
    decimal->digits[0] = '0';
    if (!mantissa)
        return;
    int zeros = __builtin_ctzl(mantissa);
    mantissa >>= zeros;
    exponent += zeros;

    struct number number = {0};
    for (uint64_t rest = mantissa; rest; rest /= limb_base)
        number.limbs[number.count++] = (uint32_t)(rest % limb_base);
    int fraction = exponent < 0 ? -exponent : 0;
    for (int left = exponent > 0 ? exponent : 0; left > 0; left -= 29)
        multiply(&number, 1u << (left < 29 ? left : 29));
    int left = fraction;
    for (; left >= 13; left -= 13)
        multiply(&number, 1220703125); /* 5^13 */
    for (; left > 0; left--)
        multiply(&number, 5);

    int count = 0;
    for (int i = number.count - 1; i >= 0; i--) {
        char digits[limb_digits];
        uint32_t limb = number.limbs[i];
        for (int j = limb_digits - 1; j >= 0; j--, limb /= 10)
            digits[j] = (char)('0' + limb % 10);
        for (int j = 0; j < limb_digits; j++)
            if (count || digits[j] != '0')
                decimal->digits[count++] = digits[j];
    }
    decimal->count = count;
    decimal->point = count - fraction;
}

void runtime_round(struct decimal *decimal, int count) {
    if (count >= decimal->count)
        return;
    bool up = false;
    if (count >= 0) {
        char next = decimal->digits[count];
        bool more = false;
        for (int i = count + 1; i < decimal->count && !more; i++)
            more = decimal->digits[i] != '0';
        bool odd = count > 0 && (decimal->digits[count - 1] & 1);
        up = next > '5' || (next == '5' && (more || odd));
    }
    decimal->count = count > 0 ? count : 0;
    if (!up)
        return;
    for (int i = decimal->count - 1; i >= 0; i--) {
        if (decimal->digits[i]++ != '9')
            return;
        decimal->digits[i] = '0';
    }
    /* All nines, or no digit at all: a one, one place higher. */
    if (decimal->count == 0)
        decimal->count = 1;
    decimal->digits[0] = '1';
    decimal->point++;
}
