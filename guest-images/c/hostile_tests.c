/* Tests whose names are anything but names. */
#include "microvm_test.h"

#define SIXTEEN(part) part part part part part part part part part part part part part part part part

#define HOSTILE(function, name)                                                                                        \
    MICROVM_EXPORT int function(void) __asm__(name);                                                                   \
    int function(void) { return *name != 't'; }

HOSTILE(first, "test_\x1b[2J\x1b]0;title\a")
HOSTILE(second, "test_</testcase><script a=\"'&amp;]]>")
HOSTILE(third, "test_two\nlines\r\tand \x7f")
HOSTILE(fourth, "test_\xe2\x80\xaegnp.\xef\xbf\xbe\xf0\x9f\x98\x80")
HOSTILE(fifth, "test_" SIXTEEN(SIXTEEN("eight by")))

/* One that fails, so that its name is in every part of a report. */
MICROVM_EXPORT int sixth(void) __asm__("test_<fails>\x1b");
int sixth(void) {
    microvm_test_report("<file>\x1b\n]]>", 14, 0, "<&\x1b\n\"'", 7, false);
    microvm_test_report("", 0, 7, "", 0, false);
    return 0;
}
