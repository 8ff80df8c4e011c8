/* Tests that run inside a micro-VM, for `microvm test` and the Swift library MicroVMTesting. In C:
 *
 *     MICROVM_TEST(test_crc) { CHECK_EQ(crc32(0, "a", 1), 0xe8b7be43u); }
 *
 * Every exported function whose name begins with `test_` is a test. Each runs in a fresh sandbox, in the state that the
 * module's initialisers have left. It passes when it returns 0 and no check has failed; a fault, an abort and a passed
 * time limit are failures. MICROVM_TEST defines such a function.
 *
 * A CHECK that does not hold is reported with its file, its line and both values, and the test goes on. A REQUIRE ends
 * the test there. Arguments are evaluated once. What a test writes is shown when it fails.
 *
 * The runtime, libmicrovm-guest.a, has the functions declared here. Without a test runner, as in `microvm run`,
 * failures go to standard error, and a REQUIRE or a skip ends in an abort.
 */
#ifndef MICROVM_TEST_H
#define MICROVM_TEST_H

#include "microvm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* MARK: What test runners provide. Weak: null where nobody tests. */

/* Reports a check that does not hold. Of each text 1024 bytes are kept, and 100 reports of each test. Does not return
 * when `is_last` is true. */
__attribute__((weak)) void microvm_test_failed(const char *file, size_t file_length, uint32_t line,
                                               const char *message, size_t message_length, bool is_last);

/* Ends the test, which then counts as skipped. Does not return. */
__attribute__((weak)) void microvm_test_skipped(const char *reason, size_t length);

/* MARK: The runtime */

/* Ends the test, which then counts as skipped, unless a check has failed before. In an initialiser it skips all tests
 * of the module. */
__attribute__((noreturn)) void microvm_skip(const char *reason);

/* Reports a failure in words of your own; with `is_last` it does not return. */
void microvm_test_report(const char *file, size_t file_length, uint32_t line, const char *message,
                         size_t message_length, bool is_last);

/* What MICROVM_TEST does before and after a test: the second returns 0, or the number of failed checks, 255 at most. */
void microvm_test_begin(void);
int microvm_test_end(void);

#ifdef __cplusplus
}
#endif

#if !defined(__cplusplus) && !defined(__swift__)

/* Defines a test. */
#define MICROVM_TEST(name)                                                                                             \
    static void name##_body(void);                                                                                     \
    MICROVM_EXPORT int name(void);                                                                                     \
    int name(void) {                                                                                                   \
        microvm_test_begin();                                                                                          \
        name##_body();                                                                                                 \
        return microvm_test_end();                                                                                     \
    }                                                                                                                  \
    static void name##_body(void)

/* MARK: Checks. REQUIRE and REQUIRE_… end the test when they do not hold. */

/* That a condition holds. */
#define CHECK(condition) MICROVM_TEST_CONDITION("CHECK", #condition, false, condition)
#define REQUIRE(condition) MICROVM_TEST_CONDITION("REQUIRE", #condition, true, condition)

/* That two numbers or two pointers are in that relation. Integers are compared as the numbers they are, whatever their
 * types: -1 is less than 1u. As soon as one of the two is a floating-point number, both are. */
#define CHECK_EQ(left, right) MICROVM_TEST_RELATION("CHECK_EQ", #left ", " #right, equal, false, left, right)
#define CHECK_NE(left, right) MICROVM_TEST_RELATION("CHECK_NE", #left ", " #right, unequal, false, left, right)
#define CHECK_LT(left, right) MICROVM_TEST_RELATION("CHECK_LT", #left ", " #right, less, false, left, right)
#define CHECK_LE(left, right) MICROVM_TEST_RELATION("CHECK_LE", #left ", " #right, less_or_equal, false, left, right)
#define CHECK_GT(left, right) MICROVM_TEST_RELATION("CHECK_GT", #left ", " #right, greater, false, left, right)
#define CHECK_GE(left, right) MICROVM_TEST_RELATION("CHECK_GE", #left ", " #right, greater_or_equal, false, left, right)
#define REQUIRE_EQ(left, right) MICROVM_TEST_RELATION("REQUIRE_EQ", #left ", " #right, equal, true, left, right)
#define REQUIRE_NE(left, right) MICROVM_TEST_RELATION("REQUIRE_NE", #left ", " #right, unequal, true, left, right)
#define REQUIRE_LT(left, right) MICROVM_TEST_RELATION("REQUIRE_LT", #left ", " #right, less, true, left, right)
#define REQUIRE_LE(left, right) MICROVM_TEST_RELATION("REQUIRE_LE", #left ", " #right, less_or_equal, true, left, right)
#define REQUIRE_GT(left, right) MICROVM_TEST_RELATION("REQUIRE_GT", #left ", " #right, greater, true, left, right)
#define REQUIRE_GE(left, right)                                                                                        \
    MICROVM_TEST_RELATION("REQUIRE_GE", #left ", " #right, greater_or_equal, true, left, right)

/* That two floating-point numbers differ by no more than a third. */
#define CHECK_NEAR(left, right, tolerance)                                                                             \
    microvm_test_near(MICROVM_TEST_PLACE("CHECK_NEAR", false, #left ", " #right), left, right, tolerance)
#define REQUIRE_NEAR(left, right, tolerance)                                                                           \
    microvm_test_near(MICROVM_TEST_PLACE("REQUIRE_NEAR", true, #left ", " #right), left, right, tolerance)

/* That two strings, ended by zero bytes, are the same; a null pointer is the same as itself. */
#define CHECK_STR(left, right)                                                                                         \
    microvm_test_strings(MICROVM_TEST_PLACE("CHECK_STR", false, #left ", " #right), left, right)
#define REQUIRE_STR(left, right)                                                                                       \
    microvm_test_strings(MICROVM_TEST_PLACE("REQUIRE_STR", true, #left ", " #right), left, right)

/* That so many bytes at two addresses are the same. */
#define CHECK_MEM(left, right, length)                                                                                 \
    microvm_test_bytes(MICROVM_TEST_PLACE("CHECK_MEM", false, #left ", " #right ", " #length), left, right, length)
#define REQUIRE_MEM(left, right, length)                                                                               \
    microvm_test_bytes(MICROVM_TEST_PLACE("REQUIRE_MEM", true, #left ", " #right ", " #length), left, right, length)

/* MARK: What the checks are made of */

struct microvm_test_place {
    const char *file;
    uint32_t line;
    bool is_last;
    const char *check, *arguments;
};

struct microvm_test_value {
    enum { microvm_test_integer, microvm_test_floating, microvm_test_pointer, microvm_test_bool } kind;
    bool is_negative; /* of an integer, whose magnitude is in `bits` */
    uint64_t bits;
    double number;
};

enum microvm_test_relation {
    microvm_test_equal,
    microvm_test_unequal,
    microvm_test_less,
    microvm_test_less_or_equal,
    microvm_test_greater,
    microvm_test_greater_or_equal,
};

void microvm_test_condition(struct microvm_test_place place);
void microvm_test_compare(struct microvm_test_place place, enum microvm_test_relation relation,
                          struct microvm_test_value left, struct microvm_test_value right);
void microvm_test_near(struct microvm_test_place place, double left, double right, double tolerance);
void microvm_test_strings(struct microvm_test_place place, const char *left, const char *right);
void microvm_test_bytes(struct microvm_test_place place, const void *left, const void *right, size_t length);

static inline struct microvm_test_value microvm_test_from_signed(int64_t value) {
    return (struct microvm_test_value){microvm_test_integer, value < 0,
                                       value < 0 ? -(uint64_t)value : (uint64_t)value, 0};
}
static inline struct microvm_test_value microvm_test_from_unsigned(uint64_t value) {
    return (struct microvm_test_value){microvm_test_integer, false, value, 0};
}
static inline struct microvm_test_value microvm_test_from_bool(bool value) {
    return (struct microvm_test_value){microvm_test_bool, false, value, 0};
}
static inline struct microvm_test_value microvm_test_from_floating(double value) {
    return (struct microvm_test_value){microvm_test_floating, false, 0, value};
}
static inline struct microvm_test_value microvm_test_from_pointer(const volatile void *value) {
    return (struct microvm_test_value){microvm_test_pointer, false, (uintptr_t)value, 0};
}

#define MICROVM_TEST_VALUE(value)                                                                                      \
    _Generic((value), bool: microvm_test_from_bool, char: microvm_test_from_signed,                                    \
        signed char: microvm_test_from_signed, short: microvm_test_from_signed, int: microvm_test_from_signed,         \
        long: microvm_test_from_signed, long long: microvm_test_from_signed,                                           \
        unsigned char: microvm_test_from_unsigned, unsigned short: microvm_test_from_unsigned,                         \
        unsigned: microvm_test_from_unsigned, unsigned long: microvm_test_from_unsigned,                               \
        unsigned long long: microvm_test_from_unsigned, float: microvm_test_from_floating,                             \
        double: microvm_test_from_floating, long double: microvm_test_from_floating,                                   \
        default: microvm_test_from_pointer)(value)

#define MICROVM_TEST_PLACE(check, is_last, arguments)                                                                  \
    ((struct microvm_test_place){__FILE__, __LINE__, is_last, check, arguments})

#define MICROVM_TEST_CONDITION(check, arguments, is_last, condition)                                                   \
    ((condition) ? (void)0 : microvm_test_condition(MICROVM_TEST_PLACE(check, is_last, arguments)))

#define MICROVM_TEST_RELATION(check, arguments, relation, is_last, left, right)                                        \
    microvm_test_compare(MICROVM_TEST_PLACE(check, is_last, arguments), microvm_test_##relation,                       \
                         MICROVM_TEST_VALUE(left), MICROVM_TEST_VALUE(right))

#endif

#endif
