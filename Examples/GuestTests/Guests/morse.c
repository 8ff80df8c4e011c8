/* Morse code, of letters and spaces. */
#include "microvm.h"

static const char *const letters[26] = {
    ".-",   "-...", "-.-.", "-..",  ".",   "..-.", "--.", "....", "..",   ".---", "-.-",  ".-..", "--",
    "-.",   "---",  ".--.", "--.-", ".-.", "...",  "-",   "..-",  "...-", ".--",  "-..-", "-.--", "--..",
};

static char code[4096];

/* The code of a text; what has no code is left out, and so is what does not fit. */
struct microvm_span morse(const char *text, size_t length) {
    size_t used = 0;
    for (size_t index = 0; index < length && used + 8 < sizeof code; index++) {
        char letter = (char)(text[index] | 0x20);
        if (text[index] == ' ')
            code[used++] = '/';
        else if (letter >= 'a' && letter <= 'z')
            for (const char *sign = letters[letter - 'a']; *sign; sign++)
                code[used++] = *sign;
        else
            continue;
        code[used++] = ' ';
    }
    return (struct microvm_span){code, used ? used - 1 : 0};
}
