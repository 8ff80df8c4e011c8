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

/* The digits of mantissa * 2^exponent. */
static void expand(uint64_t mantissa, int exponent, struct decimal *decimal) {
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

/* Takes a finite double apart; the sign bit does not matter. */
static uint64_t split(uint64_t bits, int *exponent) {
    int biased = (int)(bits >> 52 & 0x7ff);
    *exponent = (biased ? biased : 1) - 1075;
    return (bits & 0xfffffffffffff) | (uint64_t)(biased != 0) << 52;
}

void runtime_decimal(double value, struct decimal *decimal) {
    uint64_t bits;
    int exponent;
    memcpy(&bits, &value, sizeof bits);
    uint64_t mantissa = split(bits, &exponent);
    expand(mantissa, exponent, decimal);
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

/* MARK: Text to number
 *
 * An estimate by long double is off by a few units in the last place at most; from there it is moved until the text
 * lies between the two midpoints around it, compared digit by digit. */

/* What a number is written as, leading zeros left out; digits beyond those that can matter are left out too. */
struct written {
    struct decimal decimal;
    bool more; /* some digit left out was not zero */
};

/* Below zero when the text is less than mantissa * 2^exponent. */
static int compare(const struct written *written, uint64_t mantissa, int exponent) {
    struct decimal exact;
    expand(mantissa, exponent, &exact);
    const struct decimal *text = &written->decimal;
    if (exact.digits[0] == '0')
        return 1;
    if (text->point != exact.point)
        return text->point < exact.point ? -1 : 1;
    int count = text->count > exact.count ? text->count : exact.count;
    for (int i = 0; i < count; i++) {
        int left = i < text->count ? text->digits[i] : '0', right = i < exact.count ? exact.digits[i] : '0';
        if (left != right)
            return left - right;
    }
    return written->more;
}

static double estimate(const struct decimal *decimal) {
    long double value = 0;
    int count = decimal->count < 19 ? decimal->count : 19;
    for (int i = 0; i < count; i++)
        value = value * 10 + (decimal->digits[i] - '0');
    int exponent = decimal->point - count;
    long double power = 10;
    for (int rest = exponent < 0 ? -exponent : exponent; rest; rest >>= 1, power *= power)
        if (rest & 1)
            value = exponent < 0 ? value / power : value * power;
    return (double)value;
}

static double nearest(const struct written *written) {
    enum { largest = 309, smallest = -324 };
    const uint64_t infinity = 0x7ffull << 52;
    if (written->decimal.count == 0 || written->decimal.point < smallest)
        return 0;
    if (written->decimal.point > largest)
        return __builtin_inf();
    double value = estimate(&written->decimal);
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (bits >= infinity)
        bits = infinity - 1;
    for (;;) {
        int exponent;
        uint64_t mantissa = split(bits, &exponent);
        int above = compare(written, 2 * mantissa + 1, exponent - 1); /* with the midpoint to the next double */
        if (above > 0 || (above == 0 && (mantissa & 1))) {
            if (++bits == infinity)
                break;
            continue;
        }
        if (mantissa == 0)
            break;
        mantissa = split(bits - 1, &exponent);
        int below = compare(written, 2 * mantissa + 1, exponent - 1);
        if (below > 0 || (below == 0 && (mantissa & 1)))
            break;
        bits--;
    }
    memcpy(&value, &bits, sizeof bits);
    return value;
}

static bool begins_with(const char *text, const char *word) {
    for (; *word; text++, word++)
        if ((*text | 32) != *word)
            return false;
    return true;
}

/* Decimal numbers, "inf", "infinity" and "nan", in either case. */
double strtod(const char *restrict text, char **restrict end) {
    const char *at = text;
    while (*at == ' ' || (*at >= '\t' && *at <= '\r'))
        at++;
    bool negative = *at == '-';
    at += *at == '-' || *at == '+';
    struct written written = {{0}, false};
    struct decimal *decimal = &written.decimal;
    bool fraction = false, any = false;
    double value;
    if (begins_with(at, "inf") || begins_with(at, "nan")) {
        value = (*at | 32) == 'i' ? __builtin_inf() : __builtin_nan("");
        at += begins_with(at, "infinity") ? 8 : 3;
    } else {
        for (;; at++) {
            if (*at == '.' && !fraction) {
                fraction = true;
                continue;
            }
            if (*at < '0' || *at > '9')
                break;
            any = true;
            bool leading = decimal->count == 0 && *at == '0';
            decimal->point += leading ? -fraction : !fraction;
            if (leading)
                continue;
            if (decimal->count < (int)sizeof decimal->digits)
                decimal->digits[decimal->count++] = *at;
            else
                written.more |= *at != '0';
        }
        if (any && (*at | 32) == 'e') {
            const char *digits = at + 1;
            bool down = *digits == '-';
            digits += *digits == '-' || *digits == '+';
            if (*digits >= '0' && *digits <= '9') {
                int exponent = 0;
                for (at = digits; *at >= '0' && *at <= '9'; at++)
                    exponent = exponent > 100000 ? exponent : exponent * 10 + (*at - '0');
                decimal->point += down ? -exponent : exponent;
            }
        }
        value = nearest(&written);
        if (decimal->count && (value == 0 || __builtin_isinf(value)))
            errno = ERANGE;
        if (!any)
            at = text;
    }
    if (end)
        *end = (char *)at;
    return negative ? -value : value;
}

float strtof(const char *restrict text, char **restrict end) { return (float)strtod(text, end); }
double atof(const char *text) { return strtod(text, NULL); }
