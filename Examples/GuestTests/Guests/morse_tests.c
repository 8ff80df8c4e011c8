#include "microvm_test.h"

struct microvm_span morse(const char *text, size_t length);

static void check(const char *text, const char *expected) {
    struct microvm_span code = morse(text, strlen(text));
    REQUIRE_EQ(code.length, strlen(expected));
    CHECK_MEM(code.base, expected, code.length);
}

MICROVM_TEST(test_letters) {
    check("sos", "... --- ...");
    check("SOS", "... --- ...");
}

MICROVM_TEST(test_words) { check("a b", ".- / -..."); }

MICROVM_TEST(test_what_has_no_code) {
    check("", "");
    check("1!", "");
}

MICROVM_TEST(test_text_that_is_too_long) {
    static char text[10000];
    memset(text, 'q', sizeof text);
    struct microvm_span code = morse(text, sizeof text);
    CHECK_GT(code.length, 4000u);
    CHECK_LT(code.length, 4096u);
}
