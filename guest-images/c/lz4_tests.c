/* Tests of the lz4 of the distribution, linked in as it is: the block format, its high-compression form, frames. */
#include "microvm_test.h"

#include <lz4.h>
#include <lz4frame.h>
#include <lz4hc.h>

enum { size = 100000 };
static char text[size], noise[size], back[size + 64], packed[LZ4_COMPRESSBOUND(size) + 64];

/* Something like text: words of a few letters, from a small generator that is the same every time. */
static uint32_t state = 1;
static uint32_t next(void) { return state = state * 1664525 + 1013904223, state >> 16; }

__attribute__((constructor)) static void fill(void) {
    static const char *const words[] = {"micro ", "machine ", "guest ", "of ", "the ", "host\n", "memory ", "page "};
    for (size_t used = 0; used < size;) {
        const char *word = words[next() % 8];
        for (; *word && used < size; word++)
            text[used++] = *word;
    }
    for (size_t index = 0; index < size; index++)
        noise[index] = (char)next();
}

static int pack(const char *bytes, int length) {
    int count = LZ4_compress_default(bytes, packed, length, sizeof packed);
    CHECK_GT(count, 0);
    CHECK_LE(count, LZ4_compressBound(length));
    return count;
}

static void round_trip(const char *bytes, int length) {
    int count = pack(bytes, length);
    memset(back, 0x55, sizeof back);
    CHECK_EQ(LZ4_decompress_safe(packed, back, count, length), length);
    CHECK_MEM(back, bytes, (size_t)length);
    CHECK_EQ(back[length], 0x55);
}

MICROVM_TEST(test_version) {
    CHECK_EQ(LZ4_versionNumber(), LZ4_VERSION_NUMBER);
    CHECK_STR(LZ4_versionString(), LZ4_VERSION_STRING);
}

MICROVM_TEST(test_round_trip_of_text) {
    round_trip(text, size);
    CHECK_LT(pack(text, size), size / 2);
}

MICROVM_TEST(test_round_trip_of_noise) { round_trip(noise, size); }

MICROVM_TEST(test_round_trip_of_every_small_length) {
    for (int length = 0; length <= 300; length++)
        round_trip(text, length);
}

MICROVM_TEST(test_nothing_is_one_byte) {
    CHECK_EQ(pack("", 0), 1);
    CHECK_EQ(packed[0], 0);
    CHECK_EQ(LZ4_decompress_safe(packed, back, 1, 0), 0);
}

MICROVM_TEST(test_literals_as_the_format_has_them) {
    CHECK_EQ(LZ4_decompress_safe("\x50" "hello", back, 6, sizeof back), 5);
    CHECK_MEM(back, "hello", 5);
}

MICROVM_TEST(test_a_match_as_the_format_has_it) {
    /* Two literals, a match of 4 + 6 bytes at distance 2, then the five last literals. */
    static const char block[] = "\x26" "ab" "\x02\x00" "\x50" "XYZZY";
    CHECK_EQ(LZ4_decompress_safe(block, back, sizeof block - 1, sizeof back), 17);
    CHECK_MEM(back, "ababababababXYZZY", 17);
}

MICROVM_TEST(test_a_distance_of_zero_or_before_the_beginning_is_refused) {
    CHECK_LT(LZ4_decompress_safe("\x26" "ab" "\x03\x00" "\x50" "XYZZY", back, 11, sizeof back), 0);
}

MICROVM_TEST(test_bound) {
    CHECK_GE(LZ4_compressBound(size), size);
    CHECK_EQ(LZ4_compressBound(LZ4_MAX_INPUT_SIZE + 1), 0);
    CHECK_EQ(LZ4_compressBound(-1), 0);
}

MICROVM_TEST(test_output_that_is_too_small) {
    int count = pack(noise, size);
    CHECK_EQ(LZ4_compress_default(noise, packed, size, count - 1), 0);
    count = pack(text, size);
    CHECK_LT(LZ4_decompress_safe(packed, back, count, size - 1), 0);
}

MICROVM_TEST(test_every_truncation_is_noticed) {
    int count = pack(text, 2000);
    for (int length = 0; length < count; length++)
        CHECK_NE(LZ4_decompress_safe(packed, back, length, size), 2000);
}

MICROVM_TEST(test_corruption_never_leaves_the_buffers) {
    int count = pack(text, 2000);
    for (int index = 0; index < count; index++) {
        for (int bit = 0; bit < 8; bit++) {
            packed[index] = (char)(packed[index] ^ 1 << bit);
            memset(back + 2000, 0x55, 64);
            CHECK_LE(LZ4_decompress_safe(packed, back, count, 2000), 2000);
            for (int guard = 2000; guard < 2064; guard++)
                CHECK_EQ(back[guard], 0x55);
            packed[index] = (char)(packed[index] ^ 1 << bit);
        }
    }
}

MICROVM_TEST(test_noise_is_no_block) {
    for (int start = 0; start < 2000; start++)
        CHECK_LE(LZ4_decompress_safe(noise + start, back, 500, size), size);
}

MICROVM_TEST(test_partial_decompression) {
    int count = pack(text, size);
    int got = LZ4_decompress_safe_partial(packed, back, count, 1000, size);
    CHECK_GE(got, 1000);
    CHECK_MEM(back, text, 1000);
}

MICROVM_TEST(test_compression_into_a_given_size) {
    int read = size;
    int count = LZ4_compress_destSize(text, packed, &read, 5000);
    CHECK_GT(count, 4000);
    CHECK_LE(count, 5000);
    REQUIRE_LT(read, size);
    CHECK_EQ(LZ4_decompress_safe(packed, back, count, size), read);
    CHECK_MEM(back, text, (size_t)read);
}

MICROVM_TEST(test_dictionary) {
    static LZ4_stream_t stream;
    int without = pack(text + 2000, 4000);
    LZ4_initStream(&stream, sizeof stream);
    CHECK_EQ(LZ4_loadDict(&stream, text, 8000), 8000);
    int count = LZ4_compress_fast_continue(&stream, text + 2000, packed, 4000, sizeof packed, 1);
    REQUIRE_GT(count, 0);
    CHECK_LT(count, without);
    CHECK_EQ(LZ4_decompress_safe_usingDict(packed, back, count, size, text, 8000), 4000);
    CHECK_MEM(back, text + 2000, 4000);
    CHECK_NE(LZ4_decompress_safe(packed, back, count, size), 4000);
}

MICROVM_TEST(test_stream_of_blocks) {
    static LZ4_stream_t writer;
    LZ4_streamDecode_t reader;
    LZ4_initStream(&writer, sizeof writer);
    CHECK_EQ(LZ4_setStreamDecode(&reader, NULL, 0), 1);
    for (int start = 0; start < size; start += 1000) {
        int count = LZ4_compress_fast_continue(&writer, text + start, packed, 1000, sizeof packed, 1);
        REQUIRE_GT(count, 0);
        REQUIRE_EQ(LZ4_decompress_safe_continue(&reader, packed, back + start, count, 1000), 1000);
    }
    CHECK_MEM(back, text, size);
}

MICROVM_TEST(test_acceleration) {
    int previous = pack(text, size);
    for (int acceleration = 10; acceleration <= 1000; acceleration *= 10) {
        int count = LZ4_compress_fast(text, packed, size, sizeof packed, acceleration);
        CHECK_GE(count, previous);
        CHECK_EQ(LZ4_decompress_safe(packed, back, count, size), size);
        previous = count;
    }
}

MICROVM_TEST(test_high_compression) {
    int fast = pack(text, size);
    for (int level = LZ4HC_CLEVEL_MIN; level <= LZ4HC_CLEVEL_MAX; level += 3) {
        int count = LZ4_compress_HC(text, packed, size, sizeof packed, level);
        CHECK_GT(count, 0);
        CHECK_LT(count, fast);
        CHECK_EQ(LZ4_decompress_safe(packed, back, count, size), size);
        CHECK_MEM(back, text, size);
    }
}

/* MARK: Frames */

static size_t pack_frame(const char *bytes, size_t length) {
    LZ4F_preferences_t preferences = LZ4F_INIT_PREFERENCES;
    preferences.frameInfo.contentChecksumFlag = LZ4F_contentChecksumEnabled;
    preferences.frameInfo.contentSize = length;
    size_t count = LZ4F_compressFrame(packed, sizeof packed, bytes, length, &preferences);
    REQUIRE(!LZ4F_isError(count));
    return count;
}

/* The number of bytes, or an error of LZ4F. */
static size_t unpack_frame(size_t count) {
    LZ4F_dctx *context;
    REQUIRE_EQ(LZ4F_createDecompressionContext(&context, LZ4F_VERSION), 0u);
    size_t written = sizeof back, read = count;
    size_t code = LZ4F_decompress(context, back, &written, packed, &read, NULL);
    LZ4F_freeDecompressionContext(context);
    return LZ4F_isError(code) ? code : written;
}

MICROVM_TEST(test_frame_header) {
    pack_frame(text, 100);
    CHECK_MEM(packed, "\x04\x22\x4d\x18", 4);
    LZ4F_dctx *context;
    REQUIRE_EQ(LZ4F_createDecompressionContext(&context, LZ4F_VERSION), 0u);
    LZ4F_frameInfo_t info;
    size_t read = sizeof packed;
    CHECK(!LZ4F_isError(LZ4F_getFrameInfo(context, &info, packed, &read)));
    CHECK_EQ(info.contentSize, 100u);
    CHECK_EQ(info.contentChecksumFlag, LZ4F_contentChecksumEnabled);
    LZ4F_freeDecompressionContext(context);
}

MICROVM_TEST(test_frame_round_trip) {
    CHECK_EQ(unpack_frame(pack_frame(text, size)), (size_t)size);
    CHECK_MEM(back, text, size);
    CHECK_EQ(unpack_frame(pack_frame(text, 0)), 0u);
}

MICROVM_TEST(test_frame_checksum) {
    size_t count = pack_frame(noise, 1000);
    packed[count - 100] ^= 1;
    size_t code = unpack_frame(count);
    REQUIRE(LZ4F_isError(code));
    CHECK_STR(LZ4F_getErrorName(code), "ERROR_contentChecksum_invalid");
}

MICROVM_TEST(test_frame_with_another_magic_number) {
    size_t count = pack_frame(text, 1000);
    packed[0] ^= 1;
    size_t code = unpack_frame(count);
    REQUIRE(LZ4F_isError(code));
    CHECK_STR(LZ4F_getErrorName(code), "ERROR_frameType_unknown");
}

MICROVM_TEST(test_frame_byte_by_byte) {
    size_t count = pack_frame(text, 3000);
    LZ4F_dctx *context;
    REQUIRE_EQ(LZ4F_createDecompressionContext(&context, LZ4F_VERSION), 0u);
    size_t total = 0, hint = 1;
    for (size_t index = 0; index < count; index++) {
        size_t written = sizeof back - total, read = 1;
        CHECK_NE(hint, 0u);
        hint = LZ4F_decompress(context, back + total, &written, packed + index, &read, NULL);
        REQUIRE(!LZ4F_isError(hint));
        REQUIRE_EQ(read, 1u);
        total += written;
    }
    CHECK_EQ(hint, 0u);
    CHECK_EQ(total, 3000u);
    CHECK_MEM(back, text, 3000);
    LZ4F_freeDecompressionContext(context);
}
