/* Decompresses gzip and zlib streams with the zlib of the distribution, linked in as it is. */
#include "microvm.h"

#include <zlib.h>

static void fail(const char *what, const z_stream *stream, int code) {
    char text[256];
    snprintf(text, sizeof text, "%s: %s", what, stream && stream->msg ? stream->msg : zError(code));
    microvm_abort(text, strlen(text));
}

/* The output so far, kept until the next call. */
static uint8_t *output;
static size_t output_size;

static void make_room(size_t used, size_t at_least) {
    if (output_size - used >= at_least)
        return;
    size_t larger = output_size * 2 > used + at_least ? output_size * 2 : used + at_least;
    uint8_t *moved = realloc(output, larger);
    if (!moved && larger > used + at_least) {
        larger = used + at_least;
        moved = realloc(output, larger);
    }
    if (!moved)
        fail("gunzip", NULL, Z_MEM_ERROR);
    output = moved;
    output_size = larger;
}

/* A gzip file ends with its length modulo 2^32: a hint, right for files of one member. */
static size_t likely_length(const uint8_t *bytes, size_t length) {
    uint32_t stated = 0;
    if (length >= 18)
        memcpy(&stated, bytes + length - 4, sizeof stated);
    return stated / 1032 <= length ? stated : 0; /* deflate cannot do better than 1032 to 1 */
}

/* Decompresses a gzip file of one or more members, or one zlib stream. Zeros or anything else that is no further
 * member after the last one is ignored, as gzip does. Aborts with zlib's own words when the stream is damaged, ends
 * too early, or does not fit into memory. */
struct microvm_span gunzip(const uint8_t *bytes, size_t length) {
    enum { any_header = 15 + 32, least_room = 65536, most_at_once = 1 << 30 };
    z_stream stream = {0};
    size_t read = 0, written = 0;
    free(output);
    output = NULL;
    output_size = 0;
    int code = inflateInit2(&stream, any_header);
    if (code != Z_OK)
        fail("gunzip", &stream, code);
    make_room(0, likely_length(bytes, length) + 64);
    for (;;) {
        make_room(written, 1);
        size_t input = length - read < most_at_once ? length - read : most_at_once;
        size_t room = output_size - written < most_at_once ? output_size - written : most_at_once;
        stream.next_in = (Bytef *)(bytes + read);
        stream.avail_in = (uInt)input;
        stream.next_out = output + written;
        stream.avail_out = (uInt)room;
        code = inflate(&stream, Z_NO_FLUSH);
        read += input - stream.avail_in;
        written += room - stream.avail_out;
        if (code == Z_STREAM_END) {
            bool more = length - read >= 2 && bytes[read] == 0x1f && bytes[read + 1] == 0x8b;
            if (!more)
                break;
            inflateReset(&stream);
        } else if (code != Z_OK && !(code == Z_BUF_ERROR && stream.avail_out == 0)) {
            if (code == Z_BUF_ERROR)
                microvm_abort("gunzip: unexpected end of data", 30);
            fail("gunzip", &stream, code);
        } else if (stream.avail_out == 0) {
            make_room(written, least_room);
        }
    }
    inflateEnd(&stream);
    return (struct microvm_span){output, written};
}

/* The CRC-32 that gzip uses. */
uint32_t checksum(const uint8_t *bytes, size_t length) {
    return (uint32_t)crc32_z(crc32(0, NULL, 0), bytes, length);
}

/* The version of zlib, such as "1.2.13". */
struct microvm_span version_of_zlib(void) {
    const char *version = zlibVersion();
    return (struct microvm_span){(void *)version, strlen(version)};
}
