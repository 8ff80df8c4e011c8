/* Three hundred tests, some of which crash, hang, leak, abort or skip. */
#include "microvm_test.h"

static int runs;

static void behave(const char *number) {
    CHECK_EQ(++runs, 1);
    int value = atoi(number);
    uint8_t *block = malloc((size_t)value << 10);
    if (block)
        memset(block, value, (size_t)value << 10);
    printf("test %d\n", value);
    if (value % 100 == 50)
        for (volatile int lap = 0;; lap++)
            ;
    switch (value % 20) {
    case 3: *(volatile int *)16 = value; break;
    case 7: microvm_skip("seven"); break;
    case 11: microvm_abort(number, strlen(number)); break;
    case 13: CHECK_EQ(value, 0); break;
    case 17: __asm__ volatile("ud2"); break;
    }
}

#define ONE(n) MICROVM_TEST(test_##n) { behave(#n); }
#define TEN(n) ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) ONE(n##9)
#define HUNDRED(n) TEN(n##0) TEN(n##1) TEN(n##2) TEN(n##3) TEN(n##4) TEN(n##5) TEN(n##6) TEN(n##7) TEN(n##8) TEN(n##9)

HUNDRED(0)
HUNDRED(1)
HUNDRED(2)
