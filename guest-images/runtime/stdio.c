/* The part of stdio that makes sense without files: text into buffers, and two streams that the host receives. */
#include "runtime.h"

struct _IO_FILE {
    int stream; /* of microvm_write; 0 for standard input, which is always at its end */
};

static FILE standard_input = {0};
static FILE standard_output = {MICROVM_STANDARD_OUTPUT}, standard_error = {MICROVM_STANDARD_ERROR};
FILE *stdin = &standard_input, *stdout = &standard_output, *stderr = &standard_error;

struct buffer_sink {
    struct sink sink;
    char *text;
    size_t room, length;
};

static void put_in_buffer(struct sink *sink, const char *text, size_t length) {
    struct buffer_sink *buffer = (struct buffer_sink *)sink;
    if (length > buffer->room - buffer->length)
        length = buffer->room - buffer->length;
    memcpy(buffer->text + buffer->length, text, length);
    buffer->length += length;
}

int vsnprintf(char *restrict text, size_t size, const char *restrict format, va_list arguments) {
    struct buffer_sink buffer = {{put_in_buffer}, text, size ? size - 1 : 0, 0};
    int length = runtime_format(&buffer.sink, format, arguments);
    if (size)
        text[buffer.length] = 0;
    return length;
}

void microvm_log_format(int level, const char *restrict format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length > 0)
        microvm_log(level, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

struct stream_sink {
    struct sink sink;
    int stream;
    size_t length;
    char text[512];
};

static void flush(struct stream_sink *stream) {
    if (stream->length)
        microvm_write(stream->stream, stream->text, stream->length);
    stream->length = 0;
}

static void put_in_stream(struct sink *sink, const char *text, size_t length) {
    struct stream_sink *stream = (struct stream_sink *)sink;
    if (length > sizeof stream->text - stream->length)
        flush(stream);
    if (length > sizeof stream->text) {
        microvm_write(stream->stream, text, length);
        return;
    }
    memcpy(stream->text + stream->length, text, length);
    stream->length += length;
}

int vfprintf(FILE *restrict file, const char *restrict format, va_list arguments) {
    if (!file->stream)
        return EOF;
    struct stream_sink stream;
    stream.sink.put = put_in_stream;
    stream.stream = file->stream;
    stream.length = 0;
    int length = runtime_format(&stream.sink, format, arguments);
    flush(&stream);
    return length;
}

int vprintf(const char *restrict format, va_list arguments) {
    return vfprintf(stdout, format, arguments);
}

int vsprintf(char *restrict text, const char *restrict format, va_list arguments) {
    return vsnprintf(text, INT32_MAX, format, arguments);
}

/* The variants that Debian's libraries call, compiled with _FORTIFY_SOURCE, know the size of the buffer. */
int __vsnprintf_chk(char *restrict text, size_t size, int flag, size_t room, const char *restrict format,
                    va_list arguments) {
    (void)flag;
    if (room < size)
        runtime_abort("snprintf: a buffer of %zu bytes was said to have %zu", room, size);
    return vsnprintf(text, size, format, arguments);
}

int __vsprintf_chk(char *restrict text, int flag, size_t room, const char *restrict format, va_list arguments) {
    (void)flag;
    int length = vsnprintf(text, room, format, arguments);
    if (length < 0 || (size_t)length >= room)
        runtime_abort("sprintf: a buffer of %zu bytes is too small for %d", room, length);
    return length;
}

int __vfprintf_chk(FILE *restrict file, int flag, const char *restrict format, va_list arguments) {
    (void)flag;
    return vfprintf(file, format, arguments);
}

#define FORWARD(function, ...)                                                                                        \
    va_list arguments;                                                                                                \
    va_start(arguments, format);                                                                                      \
    int length = function(__VA_ARGS__, arguments);                                                                    \
    va_end(arguments);                                                                                                \
    return length

int printf(const char *restrict format, ...) { FORWARD(vfprintf, stdout, format); }
int fprintf(FILE *restrict file, const char *restrict format, ...) { FORWARD(vfprintf, file, format); }
int sprintf(char *restrict text, const char *restrict format, ...) { FORWARD(vsprintf, text, format); }
int snprintf(char *restrict text, size_t size, const char *restrict format, ...) {
    FORWARD(vsnprintf, text, size, format);
}
int __printf_chk(int flag, const char *restrict format, ...) { FORWARD(__vfprintf_chk, stdout, flag, format); }
int __fprintf_chk(FILE *restrict file, int flag, const char *restrict format, ...) {
    FORWARD(__vfprintf_chk, file, flag, format);
}
int __sprintf_chk(char *restrict text, int flag, size_t room, const char *restrict format, ...) {
    FORWARD(__vsprintf_chk, text, flag, room, format);
}
int __snprintf_chk(char *restrict text, size_t size, int flag, size_t room, const char *restrict format, ...) {
    FORWARD(__vsnprintf_chk, text, size, flag, room, format);
}

size_t fwrite(const void *restrict elements, size_t size, size_t count, FILE *restrict file) {
    size_t length;
    if (!file->stream || __builtin_mul_overflow(size, count, &length) || !length)
        return 0;
    microvm_write(file->stream, elements, length);
    return count;
}

int fputc(int character, FILE *file) {
    uint8_t byte = (uint8_t)character;
    return fwrite(&byte, 1, 1, file) == 1 ? byte : EOF;
}

int fputs(const char *restrict text, FILE *restrict file) {
    size_t length = strlen(text);
    return fwrite(text, 1, length, file) == length ? 0 : EOF;
}

int putc(int character, FILE *file) { return fputc(character, file); }
int putchar(int character) { return fputc(character, stdout); }
int puts(const char *text) { return printf("%s\n", text); }
int fflush(FILE *file) { return (void)file, 0; }
int fclose(FILE *file) { return (void)file, 0; }
int ferror(FILE *file) { return (void)file, 0; }
int feof(FILE *file) { return !file->stream; }
int fgetc(FILE *file) { return (void)file, EOF; }
int getc(FILE *file) { return (void)file, EOF; }
int ungetc(int character, FILE *file) { return (void)character, (void)file, EOF; }
size_t fread(void *restrict bytes, size_t size, size_t count, FILE *restrict file) {
    return (void)bytes, (void)size, (void)count, (void)file, 0;
}

void perror(const char *prefix) {
    fprintf(stderr, "%s: %s\n", prefix, strerror(errno));
}
