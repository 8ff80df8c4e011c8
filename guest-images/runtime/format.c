/* printf's conversions. */
#include "runtime.h"

enum { left_aligned = 1, signed_always = 2, space_for_plus = 4, alternate = 8, zero_padded = 16 };

struct conversion {
    unsigned flags;
    int width;
    int precision; /* -1: none given */
};

struct output {
    struct sink *sink;
    size_t length;
};

static void put(struct output *output, const char *text, size_t length) {
    output->length += length;
    if (length)
        output->sink->put(output->sink, text, length);
}

static void fill(struct output *output, char character, long count) {
    char block[32];
    memset(block, character, sizeof block);
    for (; count > 0; count -= (long)sizeof block)
        put(output, block, count < (long)sizeof block ? (size_t)count : sizeof block);
}

/* Puts a number: sign or radix prefix, then zeros, then digits, padded to the width. */
static void put_number(struct output *output, const struct conversion *conversion, const char *prefix, long zeros,
                       const char *digits, size_t length) {
    long used = (long)strlen(prefix) + zeros + (long)length;
    long padding = conversion->width > used ? conversion->width - used : 0;
    if (!(conversion->flags & (left_aligned | zero_padded)))
        fill(output, ' ', padding);
    put(output, prefix, strlen(prefix));
    if ((conversion->flags & zero_padded) && !(conversion->flags & left_aligned))
        fill(output, '0', padding);
    fill(output, '0', zeros);
    put(output, digits, length);
    if (conversion->flags & left_aligned)
        fill(output, ' ', padding);
}

static const char *sign(const struct conversion *conversion, bool negative) {
    return negative ? "-" : conversion->flags & signed_always ? "+" : conversion->flags & space_for_plus ? " " : "";
}

static void put_integer(struct output *output, struct conversion conversion, char kind, uint64_t value,
                        const char *prefix) {
    const char *alphabet = kind == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    unsigned base = kind == 'o' ? 8 : kind == 'x' || kind == 'X' || kind == 'p' ? 16 : 10;
    char digits[24];
    size_t at = sizeof digits;
    for (uint64_t rest = value; rest; rest /= base)
        digits[--at] = alphabet[rest % base];
    long count = (long)(sizeof digits - at);
    if (conversion.precision >= 0)
        conversion.flags &= ~(unsigned)zero_padded;
    long wanted = conversion.precision >= 0 ? conversion.precision : 1;
    if (kind == 'o' && (conversion.flags & alternate) && wanted <= count)
        wanted = count + 1;
    put_number(output, &conversion, prefix, wanted > count ? wanted - count : 0, digits + at, (size_t)count);
}

/* Digits of a fraction beyond those that the array holds are zeros. */
static void put_digits(struct output *output, const struct decimal *decimal, int from, int count) {
    for (; from < 0 && count > 0; from++, count--)
        put(output, "0", 1);
    int held = decimal->count - from;
    if (held > count)
        held = count;
    if (held > 0)
        put(output, decimal->digits + from, (size_t)held);
    else
        held = 0;
    fill(output, '0', count - held);
}

static void put_floating(struct output *output, struct conversion conversion, char kind, double value) {
    char prefix[2] = {0};
    strcpy(prefix, sign(&conversion, __builtin_signbit(value)));
    bool capital = kind < 'a';
    char style = capital ? (char)(kind + 32) : kind;
    if (!__builtin_isfinite(value)) {
        conversion.flags &= ~(unsigned)zero_padded;
        const char *name = __builtin_isnan(value) ? (capital ? "NAN" : "nan") : (capital ? "INF" : "inf");
        put_number(output, &conversion, prefix, 0, name, 3);
        return;
    }
    struct decimal decimal;
    runtime_decimal(__builtin_fabs(value), &decimal);
    bool zero = decimal.digits[0] == '0';
    int precision = conversion.precision < 0 ? 6 : conversion.precision;
    bool scientific = style == 'e';
    if (style == 'g') {
        if (precision == 0)
            precision = 1;
        runtime_round(&decimal, precision);
        int exponent = zero ? 0 : decimal.point - 1;
        int significant = decimal.count;
        while (significant > 1 && decimal.digits[significant - 1] == '0')
            significant--;
        scientific = exponent < -4 || exponent >= precision;
        if (!(conversion.flags & alternate) && significant < precision)
            precision = significant < 1 ? 1 : significant;
        precision = scientific ? precision - 1 : precision - 1 - exponent;
        if (precision < 0)
            precision = 0;
    } else {
        runtime_round(&decimal, style == 'e' ? precision + 1 : precision + decimal.point);
    }
    int whole = scientific ? 1 : decimal.point > 0 ? decimal.point : 1;
    bool point = precision > 0 || (conversion.flags & alternate);
    int exponent = zero ? 0 : decimal.point - 1;
    char tail[8];
    size_t tail_length = 0;
    if (scientific) {
        unsigned magnitude = (unsigned)(exponent < 0 ? -exponent : exponent);
        tail[tail_length++] = capital ? 'E' : 'e';
        tail[tail_length++] = exponent < 0 ? '-' : '+';
        if (magnitude >= 100)
            tail[tail_length++] = (char)('0' + magnitude / 100);
        tail[tail_length++] = (char)('0' + magnitude / 10 % 10);
        tail[tail_length++] = (char)('0' + magnitude % 10);
    }
    long used = (long)strlen(prefix) + whole + point + precision + (long)tail_length;
    long padding = conversion.width > used ? conversion.width - used : 0;
    if (!(conversion.flags & (left_aligned | zero_padded)))
        fill(output, ' ', padding);
    put(output, prefix, strlen(prefix));
    if ((conversion.flags & zero_padded) && !(conversion.flags & left_aligned))
        fill(output, '0', padding);
    int first = scientific ? 0 : decimal.point - whole;
    put_digits(output, &decimal, first, whole);
    if (point)
        put(output, ".", 1);
    put_digits(output, &decimal, first + whole, precision);
    put(output, tail, tail_length);
    if (conversion.flags & left_aligned)
        fill(output, ' ', padding);
}

static void put_text(struct output *output, struct conversion conversion, const char *text) {
    if (!text)
        text = "(null)";
    size_t length = conversion.precision < 0 ? strlen(text) : strnlen(text, (size_t)conversion.precision);
    conversion.flags &= ~(unsigned)zero_padded;
    put_number(output, &conversion, "", 0, text, length);
}

/* Reads digits of a width or precision; what does not fit counts as a great many. */
static int read_count(const char **format) {
    int count = 0;
    for (; **format >= '0' && **format <= '9'; (*format)++)
        count = count > 100000000 ? count : count * 10 + (**format - '0');
    return count;
}

static unsigned read_flags(const char **format) {
    for (unsigned flags = 0;; (*format)++) {
        switch (**format) {
        case '-': flags |= left_aligned; break;
        case '+': flags |= signed_always; break;
        case ' ': flags |= space_for_plus; break;
        case '#': flags |= alternate; break;
        case '0': flags |= zero_padded; break;
        default: return flags;
        }
    }
}

/* Bytes of the integer that the length modifiers at `format` announce; 16 for L. */
static int read_size(const char **format) {
    int size = 4;
    for (;; (*format)++) {
        switch (**format) {
        case 'h': size = size == 2 ? 1 : 2; break;
        case 'l': case 'z': case 'j': case 't': case 'q': size = 8; break;
        case 'L': size = 16; break;
        default: return size;
        }
    }
}

int runtime_format(struct sink *sink, const char *format, va_list list) {
    struct output output = {sink, 0};
    va_list arguments;
    va_copy(arguments, list);
    while (*format) {
        const char *begin = format;
        while (*format && *format != '%')
            format++;
        put(&output, begin, (size_t)(format - begin));
        if (!*format)
            break;
        begin = format++;
        struct conversion conversion = {read_flags(&format), 0, -1};
        if (*format == '*') {
            conversion.width = va_arg(arguments, int);
            if (conversion.width < 0) {
                conversion.flags |= left_aligned;
                conversion.width = conversion.width == INT32_MIN ? INT32_MAX : -conversion.width;
            }
            format++;
        } else {
            conversion.width = read_count(&format);
        }
        if (*format == '.') {
            format++;
            if (*format == '*') {
                conversion.precision = va_arg(arguments, int);
                format++;
            } else {
                conversion.precision = read_count(&format);
            }
        }
        int size = read_size(&format);
        char kind = *format;
        if (kind)
            format++;
        switch (kind) {
        case 'd': case 'i': {
            int64_t value = size == 8 ? va_arg(arguments, int64_t) : va_arg(arguments, int);
            value = size == 1 ? (int8_t)value : size == 2 ? (int16_t)value : value;
            uint64_t magnitude = value < 0 ? -(uint64_t)value : (uint64_t)value;
            put_integer(&output, conversion, kind, magnitude, sign(&conversion, value < 0));
            break;
        }
        case 'u': case 'x': case 'X': case 'o': {
            uint64_t value = size == 8 ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned);
            value = size == 1 ? (uint8_t)value : size == 2 ? (uint16_t)value : value;
            bool prefixed = (conversion.flags & alternate) && value && kind != 'u' && kind != 'o';
            put_integer(&output, conversion, kind, value, !prefixed ? "" : kind == 'x' ? "0x" : "0X");
            break;
        }
        case 'p': {
            void *pointer = va_arg(arguments, void *);
            if (pointer)
                put_integer(&output, conversion, kind, (uintptr_t)pointer, "0x");
            else
                put_text(&output, conversion, "(nil)");
            break;
        }
        case 'c': {
            char character = (char)va_arg(arguments, int);
            conversion.flags &= ~(unsigned)zero_padded;
            put_number(&output, &conversion, "", 0, &character, 1);
            break;
        }
        case 's': put_text(&output, conversion, va_arg(arguments, const char *)); break;
        case 'f': case 'F': case 'e': case 'E': case 'g': case 'G':
            put_floating(&output, conversion, kind,
                         size == 16 ? (double)va_arg(arguments, long double) : va_arg(arguments, double));
            break;
        case '%': put(&output, "%", 1); break;
        default: put(&output, begin, (size_t)(format - begin)); break; /* unknown: as it stands */
        }
    }
    va_end(arguments);
    return output.length > INT32_MAX ? -1 : (int)output.length;
}
