/* Character classes of the C locale, in the form that code compiled against glibc looks them up: tables that are
 * indexed from -128 to 255. */
#include "runtime.h"

enum { offset = 128, entries = 384 };

/* glibc's bits on a little-endian machine. */
enum {
    is_upper = 1 << 8, is_lower = 1 << 9, is_alpha = 1 << 10, is_digit = 1 << 11, is_hexadecimal = 1 << 12,
    is_space = 1 << 13, is_print = 1 << 14, is_graph = 1 << 15, is_blank = 1 << 0, is_control = 1 << 1,
    is_punctuation = 1 << 2, is_alphanumeric = 1 << 3,
};

static unsigned short classes[entries];
static int lower_case[entries], upper_case[entries];
static const unsigned short *classes_from_zero;
static const int *lower_case_from_zero, *upper_case_from_zero;

static unsigned classes_of(int c) {
    bool upper = c >= 'A' && c <= 'Z', lower = c >= 'a' && c <= 'z', digit = c >= '0' && c <= '9';
    bool letter = upper || lower, graphic = c > ' ' && c < 127;
    unsigned bits = 0;
    bits |= upper ? is_upper : 0;
    bits |= lower ? is_lower : 0;
    bits |= letter ? is_alpha : 0;
    bits |= digit ? is_digit : 0;
    bits |= digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') ? is_hexadecimal : 0;
    bits |= c == ' ' || (c >= '\t' && c <= '\r') ? is_space : 0;
    bits |= graphic || c == ' ' ? is_print : 0;
    bits |= graphic ? is_graph : 0;
    bits |= c == ' ' || c == '\t' ? is_blank : 0;
    bits |= (c >= 0 && c < ' ') || c == 127 ? is_control : 0;
    bits |= graphic && !letter && !digit ? is_punctuation : 0;
    bits |= letter || digit ? is_alphanumeric : 0;
    return bits;
}

static void prepare(void) {
    if (classes_from_zero)
        return;
    for (int c = -offset; c < entries - offset; c++) {
        classes[c + offset] = (unsigned short)classes_of(c);
        lower_case[c + offset] = c >= 'A' && c <= 'Z' ? c + 32 : c;
        upper_case[c + offset] = c >= 'a' && c <= 'z' ? c - 32 : c;
    }
    classes_from_zero = classes + offset;
    lower_case_from_zero = lower_case + offset;
    upper_case_from_zero = upper_case + offset;
}

const unsigned short **__ctype_b_loc(void) { return prepare(), &classes_from_zero; }
const int **__ctype_tolower_loc(void) { return prepare(), &lower_case_from_zero; }
const int **__ctype_toupper_loc(void) { return prepare(), &upper_case_from_zero; }

int tolower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }
int toupper(int c) { return c >= 'a' && c <= 'z' ? c - 32 : c; }
int isupper(int c) { return classes_of(c) & is_upper; }
int islower(int c) { return classes_of(c) & is_lower; }
int isalpha(int c) { return classes_of(c) & is_alpha; }
int isdigit(int c) { return classes_of(c) & is_digit; }
int isxdigit(int c) { return classes_of(c) & is_hexadecimal; }
int isspace(int c) { return classes_of(c) & is_space; }
int isprint(int c) { return classes_of(c) & is_print; }
int isgraph(int c) { return classes_of(c) & is_graph; }
int isblank(int c) { return classes_of(c) & is_blank; }
int iscntrl(int c) { return classes_of(c) & is_control; }
int ispunct(int c) { return classes_of(c) & is_punctuation; }
int isalnum(int c) { return classes_of(c) & is_alphanumeric; }
