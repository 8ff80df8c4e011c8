/* A test for each way in which a test can end. Most of them fail, which is what they are for. */
#include "microvm_test.h"

static int runs; /* in this sandbox: never more than one */

MICROVM_TEST(test_passes) {
    CHECK(true);
    CHECK_EQ(6 * 7, 42);
    CHECK_EQ(++runs, 1);
}

MICROVM_TEST(test_is_in_a_fresh_sandbox) { CHECK_EQ(++runs, 1); }

MICROVM_TEST(test_fails_a_check) {
    printf("before the check\n");
    CHECK_EQ(6 * 7, 41);
    printf("after the check\n");
}

/* One failure of each kind; what holds is in between. */
MICROVM_TEST(test_fails_every_check) {
    const char *null = NULL;
    unsigned char left[40] = {1, 2, 3}, right[40] = {1, 2, 4};
    CHECK(runs == 1);
    CHECK_EQ(-1, 0xffffffffu);
    CHECK_EQ((uint8_t)200, (int8_t)-56);
    CHECK_EQ(UINT64_MAX, INT64_MIN);
    CHECK_EQ(true, false);
    CHECK_EQ(1.5, 1);
    CHECK_EQ((void *)16, null);
    CHECK_NE(runs, 0);
    CHECK_LT(3, 3u);
    CHECK_LE(0x10, 2);
    CHECK_GT(-2, -1);
    CHECK_GE(1, 1.25f);
    CHECK_NEAR(1.0, 1.5, 0.25);
    CHECK_STR("one\ttext", "one\nother");
    CHECK_STR("some", null);
    CHECK_MEM(left, right, sizeof left);
    CHECK_EQ(0.0 / 0.0, 0.0 / 0.0);
    CHECK_EQ(5, 5ll);
    CHECK_LT(-1, 0u);
    CHECK_LE(1, 1.0);
    CHECK_NEAR(1.0, 1.5, 0.5);
    CHECK_STR(null, null);
    CHECK_STR("same", "same");
    CHECK_MEM(left, right, 2);
    CHECK_MEM(null, left, 0);
}

MICROVM_TEST(test_fails_a_thousand_checks) {
    for (int index = 0; index < 1000; index++)
        CHECK_EQ(index, -1);
}

MICROVM_TEST(test_fails_a_requirement) {
    REQUIRE_EQ(runs, 0);
    REQUIRE(runs == 1);
    microvm_abort("not reached", 11);
}

MICROVM_EXPORT int test_returns_seven(void);
int test_returns_seven(void) { return 7; }

MICROVM_TEST(test_crashes) {
    printf("about to crash\n");
    *(volatile int *)16 = 1;
}

MICROVM_TEST(test_crashes_after_a_check) {
    CHECK(runs == 1);
    *(volatile int *)16 = 1;
}

MICROVM_TEST(test_aborts) { microvm_abort("out of \x1b[31mluck\n", 17); }

MICROVM_TEST(test_asserts) { assert(runs == 1); }

static volatile int depth;
static int descend(int level) {
    volatile char room[256];
    room[0] = (char)level;
    depth = level;
    return level < 0 ? 0 : descend(level + 1) + room[0];
}
MICROVM_TEST(test_overflows_the_stack) { CHECK_EQ(descend(0), 0); }

MICROVM_TEST(test_hangs) {
    for (volatile int lap = 0;; lap++)
        ;
}

MICROVM_TEST(test_hangs_in_host_calls) {
    for (;;)
        microvm_clock(MICROVM_CLOCK_MONOTONIC);
}

MICROVM_TEST(test_skips) {
    microvm_skip("there is no network in here");
    CHECK(false);
}

MICROVM_TEST(test_skips_after_a_failure) {
    CHECK(runs == 1);
    microvm_skip("too late");
}

static void flood(void) {
    static char line[4096];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (int count = 0; count < 512; count++)
        microvm_write(MICROVM_STANDARD_OUTPUT, line, sizeof line);
}

MICROVM_TEST(test_floods) { flood(); }

MICROVM_TEST(test_floods_and_fails) {
    printf("the beginning\n");
    flood();
    printf("the end\n");
    CHECK(runs == 1);
}

MICROVM_TEST(test_writes_hostile_bytes) {
    static const char bytes[] = "\x1b[2J]]></system-out>&amp;\xff\xfe\x01\x7f\r\n"
                                "\xe2\x80\xae\xed\xa0\x80\xef\xbf\xbe\n";
    microvm_write(MICROVM_STANDARD_ERROR, bytes, sizeof bytes); /* the zero byte too */
    CHECK_STR("<\x1b]0;title\a>", "&\"'");
}

MICROVM_TEST(test_reports_nonsense) {
    microvm_test_failed((const char *)8, SIZE_MAX, UINT32_MAX, (const char *)UINTPTR_MAX, SIZE_MAX, false);
}

MICROVM_TEST(test_leaks) {
    for (int block = 0; block < 16; block++) {
        char *bytes = malloc(1 << 20);
        REQUIRE(bytes != NULL);
        memset(bytes, block, 1 << 20);
    }
}

/* Fails about every other time. */
MICROVM_TEST(test_is_flaky) {
    uint8_t byte;
    microvm_random(&byte, 1);
    CHECK_EQ(byte & 1, 0);
}
