// Encodings against codes written by hand, and what error feedback owes.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "encoding.hpp"
#include "failures.hpp"
#include "layouts.hpp"

using namespace stepwell;
using testing::elements_of;
using testing::make_layout;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
Codes<T> codes_of(const std::string& name, const Values& arguments, const std::vector<T>& elements) {
    return encode<T>(name, arguments, elements);
}

std::vector<int> bytes_of(const std::vector<std::byte>& data) {
    std::vector<int> bytes;
    for (const std::byte byte : data) bytes.push_back(std::to_integer<int>(byte));
    return bytes;
}

std::vector<float> floats_of(const std::string& bytes) {
    std::vector<float> floats(bytes.size() / sizeof(float));
    std::memcpy(floats.data(), bytes.data(), bytes.size());
    return floats;
}

std::vector<int> bytes_of(const std::string& text) {
    std::vector<int> bytes;
    for (const char byte : text) bytes.push_back(static_cast<unsigned char>(byte));
    return bytes;
}

Piece piece_of(const std::vector<float>& elements, std::uint64_t offset_bytes = 0) {
    Piece piece;
    piece.packed_offset_bytes = offset_bytes;
    piece.parts = {{reinterpret_cast<const std::byte*>(elements.data()), elements.size() * sizeof(float)}};
    return piece;
}

}  // namespace

TEST_CASE("float16: scaled, and saturated where it was finite") {
    const auto codes = codes_of<float>("float16", {{"scale", 8.0}}, {1.0F, -1e5F, -infinity});
    CHECK(bytes_of(codes.data) == std::vector<int>{0x00, 0x48, 0xFF, 0xFB, 0x00, 0xFC});
    CHECK(floats_of(codes.scales) == std::vector<float>{8.0F});
    CHECK(codes.decoded == std::vector<float>{1.0F, -8188.0F, -infinity});
    CHECK_FALSE(codes.finite);
    CHECK(codes_of<double>("float16", {{"scale", 1.0}}, {1e300}).finite);
}

TEST_CASE("int8: a scale for each block, half way to even") {
    const auto codes = codes_of<float>("int8", {{"block", 4}}, {127.0F, -3.0F, 0.4F, 2.5F, 0.0F});
    CHECK(bytes_of(codes.data) == std::vector<int>{127, 256 - 3, 0, 2, 0});
    CHECK(floats_of(codes.scales) == std::vector<float>{1.0F, 0.0F});
    CHECK(codes.decoded == std::vector<float>{127.0F, -3.0F, 0.0F, 2.0F, 0.0F});
    CHECK(codes.finite);
    const auto nan = codes_of<float>("int8", {{"block", 2}}, {1.0F, std::nanf(""), 127.0F, 1.0F});
    CHECK_FALSE(nan.finite);
    CHECK(std::isnan(nan.decoded[0]));
    CHECK(nan.decoded[2] == 127.0F);
    const auto large = codes_of<float>("int8", {{"block", 2}}, {std::numeric_limits<float>::max()});
    CHECK(large.finite);
    CHECK(std::isfinite(large.decoded[0]));
}

TEST_CASE("sign: a bit each, lowest first, and the mean of sizes") {
    const auto codes = codes_of<float>("sign", {{"block", 4}}, {1.0F, -3.0F, 0.0F, 4.0F, -2.0F});
    CHECK(bytes_of(codes.data) == std::vector<int>{0b10010});
    CHECK(floats_of(codes.scales) == std::vector<float>{2.0F, 2.0F});
    CHECK(codes.decoded == std::vector<float>{2.0F, -2.0F, 2.0F, 2.0F, -2.0F});
    const float most = std::numeric_limits<float>::max();
    CHECK(codes_of<float>("sign", {{"block", 4}}, {most, most, most, most}).finite);
}

TEST_CASE("top_k: the largest as they are, places as gaps") {
    const auto codes = codes_of<float>("top_k", {{"density", 0.25}}, {1, -9, 2, 3, 0, 8, -4, 5});
    CHECK(floats_of(std::string(reinterpret_cast<const char*>(codes.data.data()), codes.data.size())) ==
          std::vector<float>{-9, 8});
    CHECK(bytes_of(codes.indices) == std::vector<int>{1, 3});
    CHECK(codes.decoded == std::vector<float>{0, -9, 0, 0, 0, 8, 0, 0});

    std::vector<float> far(1200);
    far[255] = 1;   // 255 lie before it
    far[800] = -2;  // 544 lie between
    CHECK(bytes_of(codes_of<float>("top_k", {{"density", 2.0 / 1200}}, far).indices) ==
          std::vector<int>{255, 0, 255, 255, 34});
    const auto nan = codes_of<float>("top_k", {{"density", 0.5}}, {std::nanf(""), 1.0F});
    CHECK(bytes_of(nan.indices) == std::vector<int>{0});
    CHECK_FALSE(nan.finite);
}

TEST_CASE("casts, and a name of tomorrow") {
    const auto narrow = codes_of<double>("float32", {}, {0.1});
    CHECK(narrow.decoded == std::vector<float>{0.1F});
    CHECK(bytes_of(codes_of<float>("bfloat16", {}, {1.0F, -2.0F}).data) == std::vector<int>{0x80, 0x3F, 0x00, 0xC0});
    CHECK(testing::reason_of([] { codes_of<float>("tomorrow", {}, {1.0F}); }) == ErrorReason::internal);
}

TEST_CASE("what a committed update did not carry is owed to the next") {
    const Layout layout = make_layout({DType::float32}, {{"w", {3}, 0}});
    Encoder encoder(Part("sign", {{"block", 8}, {"error_feedback", true}}));
    REQUIRE(encoder.feedback());
    const std::vector<float> first = {3, 1}, zero = {0, 0};

    const auto send = [&](const std::vector<float>& gradient, bool committed) {
        EncodedUpdate update(encoder, layout);
        const Piece piece = update.add({piece_of(gradient)})[0];
        REQUIRE(piece.encoded);
        CHECK(piece.encoded->elements == 2);
        CHECK(update.made().size() == 1);
        if (committed) update.settle();
        return std::make_pair(floats_of(piece.encoded->scales)[0], elements_of<char>(piece)[0]);
    };
    CHECK(send(first, false) == std::make_pair(2.0F, char{0}));
    CHECK(send(first, true) == std::make_pair(2.0F, char{0}));    // nothing was owed by the one before
    CHECK(send(zero, true) == std::make_pair(1.0F, char{0b10}));  // 3 - 2 and 1 - 2
    CHECK(send(zero, true) == std::make_pair(0.0F, char{0}));     // all has been sent
}

TEST_CASE("what would not become smaller is not encoded") {
    const Layout layout = make_layout({DType::bfloat16, DType::float64}, {{"w", {2}, 0}, {"v", {2}, 1}});
    Encoder encoder(Part("bfloat16", {{"error_feedback", false}}));
    std::size_t count = 9;
    Piece piece;
    const std::vector<std::uint16_t> halves = {1, 2};
    piece.parts = {{reinterpret_cast<const std::byte*>(halves.data()), 4}};
    CHECK(encoder.encode(piece, layout, count).dtype == v1::D_TYPE_UNSPECIFIED);
    CHECK(count == 0);
    const std::vector<double> doubles = {1, 2};
    piece.group = 1;
    piece.parts = {{reinterpret_cast<const std::byte*>(doubles.data()), 16}};
    const Piece encoded = encoder.encode(piece, layout, count);
    CHECK(encoded.dtype == v1::D_TYPE_BFLOAT16);
    CHECK(count == 2);
    CHECK(encoded.size_bytes() == 4);
}

TEST_CASE("encoded parameters become whole") {
    v1::Range range;
    range.set_encoding("int8");
    range.set_elements(3);
    range.set_data(std::string("\x01\xFE\x03", 3));
    const std::vector<float> scales = {2.0F, 0.5F};
    range.set_scales(reinterpret_cast<const char*>(scales.data()), 8);
    const Decoder decoder(Part("int8", {{"block", 2}}));
    const auto doubles = decoder.decode(range, DType::float64);
    std::vector<double> got(3);
    std::memcpy(got.data(), doubles.data(), doubles.size());
    CHECK(got == std::vector<double>{2.0, -4.0, 1.5});
    range.set_elements(4);
    CHECK(testing::reason_of([&] { static_cast<void>(decoder.decode(range, DType::float32)); }) ==
          ErrorReason::internal);
    v1::Range cast;
    cast.set_dtype(v1::D_TYPE_BFLOAT16);
    cast.set_data(std::string("\x80\x3F", 2));
    const auto one = decoder.decode(cast, DType::float32);
    CHECK(bytes_of(one) == std::vector<int>{0x00, 0x00, 0x80, 0x3F});
}
