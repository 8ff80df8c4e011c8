/* Tests of the zlib of the distribution, linked in as it is. */
#include "microvm_test.h"

#include <zlib.h>

enum { size = 100000 };
static Bytef text[size], noise[size], back[size + 64], packed[2 * size];

/* Something like text: words of a few letters, from a small generator that is the same every time. */
static uint32_t state = 1;
static uint32_t next(void) { return state = state * 1664525 + 1013904223, state >> 16; }

__attribute__((constructor)) static void fill(void) {
    static const char *const words[] = {"micro ", "machine ", "guest ", "of ", "the ", "host\n", "memory ", "page "};
    for (size_t used = 0; used < size;) {
        const char *word = words[next() % 8];
        for (; *word && used < size; word++)
            text[used++] = (Bytef)*word;
    }
    for (size_t index = 0; index < size; index++)
        noise[index] = (Bytef)next();
}

static uLong pack(const Bytef *bytes, uLong length, int level) {
    uLong count = sizeof packed;
    REQUIRE_EQ(compress2(packed, &count, bytes, length, level), Z_OK);
    CHECK_LE(count, compressBound(length));
    return count;
}

static void round_trip(const Bytef *bytes, uLong length, int level) {
    uLong count = pack(bytes, length, level), got = size;
    memset(back, 0x55, sizeof back);
    CHECK_EQ(uncompress(back, &got, packed, count), Z_OK);
    CHECK_EQ(got, length);
    CHECK_MEM(back, bytes, length);
    CHECK_EQ(back[length], 0x55);
}

/* Decompresses what is in `packed`, so many bytes at a time in and out; the last code of zlib. */
static int unpack(int window_bits, size_t count, size_t in, size_t out, size_t *length) {
    z_stream stream = {0};
    REQUIRE_EQ(inflateInit2(&stream, window_bits), Z_OK);
    size_t read = 0;
    int code = Z_OK;
    while (code == Z_OK && (read < count || stream.avail_out == 0)) {
        stream.next_in = packed + read;
        stream.avail_in = (uInt)(count - read < in ? count - read : in);
        stream.next_out = back + stream.total_out;
        stream.avail_out = (uInt)(sizeof back - stream.total_out < out ? sizeof back - stream.total_out : out);
        if (!stream.avail_out)
            break;
        code = inflate(&stream, Z_NO_FLUSH);
        read = stream.total_in;
    }
    *length = stream.total_out;
    CHECK_EQ(inflateEnd(&stream), Z_OK);
    return code;
}

static size_t pack_stream(int window_bits, int strategy, const Bytef *bytes, size_t length) {
    z_stream stream = {0};
    REQUIRE_EQ(deflateInit2(&stream, 6, Z_DEFLATED, window_bits, 8, strategy), Z_OK);
    stream.next_in = (Bytef *)bytes;
    stream.avail_in = (uInt)length;
    stream.next_out = packed;
    stream.avail_out = sizeof packed;
    CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    CHECK_EQ(deflateEnd(&stream), Z_OK);
    return stream.total_out;
}

MICROVM_TEST(test_version) {
    CHECK_STR(zlibVersion(), ZLIB_VERSION);
    CHECK_EQ(zlibCompileFlags() & 0xff, 0xa9); /* 32-bit uInt, 64-bit uLong, voidpf and z_off_t */
}

/* MARK: Checksums */

MICROVM_TEST(test_crc) {
    CHECK_EQ(crc32(0, Z_NULL, 0), 0u);
    CHECK_EQ(crc32(0, (const Bytef *)"a", 1), 0xe8b7be43u);
    CHECK_EQ(crc32(0, (const Bytef *)"123456789", 9), 0xcbf43926u);
}

MICROVM_TEST(test_crc_in_pieces) {
    uLong whole = crc32(0, noise, size);
    for (uInt cut = 0; cut < 200; cut++)
        CHECK_EQ(crc32(crc32(0, noise, cut), noise + cut, size - cut), whole);
}

MICROVM_TEST(test_crc_combined) {
    uLong first = crc32(0, text, 12345), second = crc32(0, text + 12345, size - 12345);
    CHECK_EQ(crc32_combine(first, second, size - 12345), crc32(0, text, size));
    CHECK_EQ(crc32_combine(first, crc32(0, text, 0), 0), first);
}

MICROVM_TEST(test_adler) {
    CHECK_EQ(adler32(0, Z_NULL, 0), 1u);
    CHECK_EQ(adler32(1, (const Bytef *)"Wikipedia", 9), 0x11e60398u);
    CHECK_EQ(adler32(adler32(1, noise, 5553), noise + 5553, size - 5553), adler32(1, noise, size));
}

MICROVM_TEST(test_adler_combined) {
    uLong first = adler32(1, text, 70000), second = adler32(1, text + 70000, size - 70000);
    CHECK_EQ(adler32_combine(first, second, size - 70000), adler32(1, text, size));
}

/* MARK: Round trips */

MICROVM_TEST(test_round_trip_at_every_level) {
    for (int level = 0; level <= 9; level++)
        round_trip(text, size, level);
}

MICROVM_TEST(test_round_trip_of_noise) { round_trip(noise, size, 9); }

MICROVM_TEST(test_round_trip_of_every_small_length) {
    for (uLong length = 0; length <= 300; length++)
        round_trip(text, length, 6);
}

MICROVM_TEST(test_round_trip_of_zeros) {
    static Bytef zeros[size];
    round_trip(zeros, size, 9);
    CHECK_LT(pack(zeros, size, 9), 200u);
}

MICROVM_TEST(test_round_trip_with_every_strategy) {
    for (int strategy = Z_DEFAULT_STRATEGY; strategy <= Z_FIXED; strategy++) {
        size_t length;
        CHECK_EQ(unpack(15, pack_stream(15, strategy, text, size), size, size, &length), Z_STREAM_END);
        CHECK_EQ(length, (size_t)size);
        CHECK_MEM(back, text, size);
    }
}

MICROVM_TEST(test_round_trip_with_every_window) {
    for (int bits = 9; bits <= 15; bits++) {
        size_t length;
        CHECK_EQ(unpack(bits, pack_stream(bits, Z_DEFAULT_STRATEGY, text, 20000), size, size, &length), Z_STREAM_END);
        CHECK_MEM(back, text, 20000);
    }
}

MICROVM_TEST(test_levels_get_better) { CHECK_LE(pack(text, size, 9), pack(text, size, 1)); }

MICROVM_TEST(test_byte_by_byte) {
    size_t count = pack_stream(15, Z_DEFAULT_STRATEGY, text, 3000), length;
    CHECK_EQ(unpack(15, count, 1, 1, &length), Z_STREAM_END);
    CHECK_EQ(length, 3000u);
    CHECK_MEM(back, text, 3000);
}

/* MARK: Formats */

MICROVM_TEST(test_stored_block_as_the_format_has_it) {
    static const Bytef block[] = {0x78, 0x01, 0x01, 0x01, 0x00, 0xfe, 0xff, 0x61, 0x00, 0x62, 0x00, 0x62};
    uLong got = size;
    CHECK_EQ(uncompress(back, &got, block, sizeof block), Z_OK);
    CHECK_EQ(got, 1u);
    CHECK_EQ(back[0], 'a');
}

MICROVM_TEST(test_fixed_block_as_the_format_has_it) {
    size_t count = pack_stream(-15, Z_FIXED, (const Bytef *)"a", 1);
    CHECK_EQ(count, 3u);
    CHECK_MEM(packed, "\x4b\x04\x00", 3);
}

MICROVM_TEST(test_gzip) {
    size_t count = pack_stream(15 + 16, Z_DEFAULT_STRATEGY, text, size), length;
    CHECK_MEM(packed, "\x1f\x8b\x08", 3);
    uint32_t trailer[2];
    memcpy(trailer, packed + count - 8, 8);
    CHECK_EQ(trailer[0], crc32(0, text, size));
    CHECK_EQ(trailer[1], size);
    CHECK_EQ(unpack(15 + 32, count, size, size, &length), Z_STREAM_END);
    CHECK_MEM(back, text, size);
}

MICROVM_TEST(test_gzip_with_a_name) {
    z_stream stream = {0};
    char name[] = "words.txt", got[32] = "";
    gz_header header = {.name = (Bytef *)name, .time = 12345, .os = 3};
    REQUIRE_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
    CHECK_EQ(deflateSetHeader(&stream, &header), Z_OK);
    stream.next_in = text;
    stream.avail_in = 100;
    stream.next_out = packed;
    stream.avail_out = sizeof packed;
    CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    uInt count = (uInt)stream.total_out;
    CHECK_EQ(deflateEnd(&stream), Z_OK);

    gz_header found = {.name = (Bytef *)got, .name_max = sizeof got};
    stream = (z_stream){.next_in = packed, .avail_in = count};
    REQUIRE_EQ(inflateInit2(&stream, 31), Z_OK);
    CHECK_EQ(inflateGetHeader(&stream, &found), Z_OK);
    stream.next_out = back;
    stream.avail_out = sizeof back;
    CHECK_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
    CHECK_EQ(found.done, 1);
    CHECK_EQ(found.time, 12345u);
    CHECK_STR(got, name);
    inflateEnd(&stream);
}

MICROVM_TEST(test_dictionary) {
    z_stream stream = {0};
    REQUIRE_EQ(deflateInit(&stream, 9), Z_OK);
    CHECK_EQ(deflateSetDictionary(&stream, text, 8000), Z_OK);
    stream.next_in = text + 2000;
    stream.avail_in = 4000;
    stream.next_out = packed;
    stream.avail_out = sizeof packed;
    CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    uInt count = (uInt)stream.total_out;
    CHECK_LT(count, 200u);
    deflateEnd(&stream);

    stream = (z_stream){.next_in = packed, .avail_in = count, .next_out = back, .avail_out = sizeof back};
    REQUIRE_EQ(inflateInit(&stream), Z_OK);
    CHECK_EQ(inflate(&stream, Z_FINISH), Z_NEED_DICT);
    CHECK_EQ(stream.adler, adler32(1, text, 8000));
    CHECK_EQ(inflateSetDictionary(&stream, noise, 8000), Z_DATA_ERROR);
    CHECK_EQ(inflateSetDictionary(&stream, text, 8000), Z_OK);
    CHECK_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
    CHECK_MEM(back, text + 2000, 4000);
    inflateEnd(&stream);
}

/* MARK: Damage */

MICROVM_TEST(test_every_truncation_is_noticed) {
    uLong count = pack(text, 2000, 6);
    for (uLong length = 0; length < count; length++) {
        uLong got = size;
        CHECK_NE(uncompress(back, &got, packed, length), Z_OK);
    }
}

MICROVM_TEST(test_no_flipped_bit_changes_the_text) {
    uLong count = pack(text, 1000, 6);
    for (uLong index = 0; index < count; index++) {
        for (int bit = 0; bit < 8; bit++) {
            uLong got = 1000;
            packed[index] ^= (Bytef)(1 << bit);
            /* Another way to say the same is no damage, nor are the bits that fill up the last byte of the data. */
            if (uncompress(back, &got, packed, count) == Z_OK) {
                CHECK_EQ(got, 1000u);
                CHECK_MEM(back, text, 1000);
            }
            packed[index] ^= (Bytef)(1 << bit);
        }
    }
}

static const char *message(const char *bytes, size_t count) {
    z_stream stream = {.next_in = (Bytef *)bytes, .avail_in = (uInt)count, .next_out = back, .avail_out = sizeof back};
    REQUIRE_EQ(inflateInit2(&stream, -15), Z_OK);
    int code = inflate(&stream, Z_FINISH);
    const char *text = code == Z_DATA_ERROR ? stream.msg : "no data error";
    inflateEnd(&stream);
    return text;
}

MICROVM_TEST(test_messages) {
    CHECK_STR(message("\x07", 1), "invalid block type");
    CHECK_STR(message("\x01\x01\x00\x00\x00", 5), "invalid stored block lengths");
    CHECK_STR(message("\x03\x02\x00", 3), "invalid distance too far back");
    CHECK_STR(message("\xfc\x00\x00", 3), "too many length or distance symbols");
}

MICROVM_TEST(test_bad_headers) {
    uLong got = size;
    CHECK_EQ(uncompress(back, &got, (const Bytef *)"\x78\x9d\x03\x00", 4), Z_DATA_ERROR);
    got = size;
    CHECK_EQ(uncompress(back, &got, (const Bytef *)"not zlib", 8), Z_DATA_ERROR);
}

MICROVM_TEST(test_noise_is_no_stream) {
    for (size_t start = 0; start < 2000; start++) {
        z_stream stream = {
            .next_in = noise + start, .avail_in = 500, .next_out = back, .avail_out = size,
        };
        REQUIRE_EQ(inflateInit2(&stream, -15), Z_OK);
        inflate(&stream, Z_FINISH);
        CHECK_LE(stream.total_out, (uLong)size);
        inflateEnd(&stream);
    }
}

MICROVM_TEST(test_damage_is_skipped_to_the_next_sync_point) {
    z_stream stream = {0};
    REQUIRE_EQ(deflateInit(&stream, 6), Z_OK);
    stream.next_in = text;
    stream.avail_in = 5000;
    stream.next_out = packed;
    stream.avail_out = sizeof packed;
    CHECK_EQ(deflate(&stream, Z_FULL_FLUSH), Z_OK);
    uInt first = (uInt)stream.total_out;
    stream.next_in = text + 5000;
    stream.avail_in = 5000;
    CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    uInt count = (uInt)stream.total_out;
    deflateEnd(&stream);
    packed[2] = 0x07; /* no type of block */

    stream = (z_stream){.next_in = packed, .avail_in = count, .next_out = back, .avail_out = sizeof back};
    REQUIRE_EQ(inflateInit(&stream), Z_OK);
    CHECK_EQ(inflate(&stream, Z_NO_FLUSH), Z_DATA_ERROR);
    CHECK_EQ(inflateSync(&stream), Z_OK);
    CHECK_GE(stream.total_in, first);
    stream.next_out = back;
    inflate(&stream, Z_NO_FLUSH);
    CHECK_MEM(back, text + 5000, 5000);
    inflateEnd(&stream);
}

/* MARK: Limits */

MICROVM_TEST(test_output_that_is_too_small) {
    uLong count = compressBound(size) / 4;
    CHECK_EQ(compress(packed, &count, noise, size), Z_BUF_ERROR);
    count = pack(text, size, 6);
    uLong got = size - 1;
    CHECK_EQ(uncompress(back, &got, packed, count), Z_BUF_ERROR);
}

MICROVM_TEST(test_parameters_out_of_range) {
    z_stream stream = {0};
    CHECK_EQ(deflateInit(&stream, 10), Z_STREAM_ERROR);
    CHECK_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 7, 8, 0), Z_STREAM_ERROR);
    CHECK_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15, 10, 0), Z_STREAM_ERROR);
    CHECK_EQ(inflateInit2(&stream, 48), Z_STREAM_ERROR);
    CHECK_EQ(deflateInit_(&stream, 6, "0.9", sizeof stream), Z_VERSION_ERROR);
    CHECK_EQ(inflate(Z_NULL, 0), Z_STREAM_ERROR);
}

static voidpf no_memory(voidpf opaque, uInt count, uInt each) {
    int *left = opaque;
    return (*left)-- > 0 ? malloc((size_t)count * each) : Z_NULL;
}
static void give_back(voidpf opaque, voidpf block) { (void)opaque, free(block); }

MICROVM_TEST(test_without_memory) {
    for (int allowed = 0; allowed < 5; allowed++) {
        int left = allowed;
        z_stream stream = {.zalloc = no_memory, .zfree = give_back, .opaque = &left};
        CHECK_EQ(deflateInit(&stream, 6), Z_MEM_ERROR);
    }
    int left = 0;
    z_stream stream = {.zalloc = no_memory, .zfree = give_back, .opaque = &left};
    CHECK_EQ(inflateInit(&stream), Z_MEM_ERROR);
}

MICROVM_TEST(test_bound_of_a_stream) {
    z_stream stream = {0};
    REQUIRE_EQ(deflateInit(&stream, 6), Z_OK);
    CHECK_GE(deflateBound(&stream, size), pack(noise, size, 6));
    deflateEnd(&stream);
}

/* MARK: Streams */

MICROVM_TEST(test_reset) {
    z_stream stream = {0};
    uLong first = 0;
    REQUIRE_EQ(deflateInit(&stream, 6), Z_OK);
    for (int round = 0; round < 3; round++) {
        stream.next_in = text;
        stream.avail_in = 10000;
        stream.next_out = packed;
        stream.avail_out = sizeof packed;
        CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
        if (round == 0)
            first = stream.total_out;
        CHECK_EQ(stream.total_out, first);
        CHECK_EQ(deflateReset(&stream), Z_OK);
    }
    deflateEnd(&stream);
}

MICROVM_TEST(test_copy) {
    z_stream stream = {0}, copy;
    uLong count = pack(text, 10000, 6);
    stream.next_in = packed;
    stream.avail_in = (uInt)count;
    stream.next_out = back;
    stream.avail_out = 5000;
    REQUIRE_EQ(inflateInit(&stream), Z_OK);
    CHECK_EQ(inflate(&stream, Z_NO_FLUSH), Z_OK);
    REQUIRE_EQ(inflateCopy(&copy, &stream), Z_OK);
    CHECK_EQ(inflateEnd(&stream), Z_OK);
    copy.avail_out = sizeof back - 5000;
    CHECK_EQ(inflate(&copy, Z_FINISH), Z_STREAM_END);
    CHECK_EQ(copy.total_out, 10000u);
    CHECK_MEM(back, text, 10000);
    inflateEnd(&copy);
}

MICROVM_TEST(test_parameters_in_the_middle) {
    z_stream stream = {0};
    size_t length;
    REQUIRE_EQ(deflateInit(&stream, 1), Z_OK);
    stream.next_in = text;
    stream.avail_in = 50000;
    stream.next_out = packed;
    stream.avail_out = sizeof packed;
    CHECK_EQ(deflate(&stream, Z_NO_FLUSH), Z_OK);
    CHECK_EQ(deflateParams(&stream, 9, Z_FILTERED), Z_OK);
    stream.next_in = text + 50000;
    stream.avail_in = size - 50000;
    CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    uLong count = stream.total_out;
    deflateEnd(&stream);
    CHECK_EQ(unpack(15, count, size, size, &length), Z_STREAM_END);
    CHECK_MEM(back, text, size);
}
