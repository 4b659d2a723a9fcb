// Floats of 16 bits against tables written by hand, and views.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stepwell/stepwell.hpp>

#include "half.hpp"

using namespace stepwell;

TEST_CASE("binary16 by hand") {
    struct Row {
        double value;
        int bits;
    };
    const double infinity = std::numeric_limits<double>::infinity();
    const Row rows[] = {
        {0.0, 0x0000},
        {-0.0, 0x8000},
        {1.0, 0x3C00},
        {-2.0, 0xC000},
        {65504.0, 0x7BFF},
        {65519.9, 0x7BFF},
        {65520.0, 0x7C00},
        {1e30, 0x7C00},
        {-infinity, 0xFC00},
        {std::ldexp(1, -14), 0x0400},                           // the least normal number
        {std::ldexp(1, -24), 0x0001},                           // the least of all
        {std::ldexp(1, -25), 0x0000},                           // half way: to even
        {std::ldexp(3, -25), 0x0002},                           // half way: to even
        {std::ldexp(1, -14) - std::ldexp(1, -25), 0x0400},      // rounds up into the normal ones
        {1 + std::ldexp(1, -11), 0x3C00},                       // half way: to even
        {1 + std::ldexp(3, -11), 0x3C02},                       // half way: to even
        {1 + std::ldexp(1, -11) + std::ldexp(1, -40), 0x3C01},  // rounded once, not by way of float32
        {2 - std::ldexp(1, -12), 0x4000},                       // carries into the exponent
    };
    for (const Row& row : rows) {
        CAPTURE(row.value);
        CHECK(to_half(row.value) == row.bits);
    }
    CHECK((to_half(std::nan("")) & 0x7C00) == 0x7C00);
    CHECK((to_half(std::nan("")) & 0x03FF) != 0);
}

TEST_CASE("every binary16 and bfloat16 comes back from float32") {
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        if (!std::isnan(from_half(half))) REQUIRE(to_half(from_half(half)) == half);
        if (!std::isnan(from_bfloat16(half))) REQUIRE(to_bfloat16(from_bfloat16(half)) == half);
    }
    CHECK(from_half(0x3555) == doctest::Approx(1.0 / 3).epsilon(1e-3));
    CHECK(from_bfloat16(0x4049) == 3.140625F);
}

TEST_CASE("half way to bfloat16: parameters to even, gradients away from zero") {
    const float half_way = 1 + std::ldexp(1.0F, -8);
    CHECK(BFloat16(half_way).bits == 0x3F80);
    CHECK(to_bfloat16_away(half_way) == 0x3F81);
    CHECK(static_cast<float>(BFloat16(-1.5F)) == -1.5F);
    CHECK(static_cast<float>(Half(0.25F)) == 0.25F);
}

TEST_CASE("views are made of what holds the elements") {
    std::vector<float> floats = {1, 2, 3};
    const double doubles[] = {4, 5};
    const Span<const float> span = floats;
    CHECK(span.size() == 3);
    CHECK(span.subspan(1, 2)[1] == 3);
    CHECK(Elements(floats).dtype() == DType::float32);
    CHECK(Elements(doubles).size_bytes() == 16);
    CHECK(Elements(span).data() == floats.data());
    CHECK(Elements(std::vector<Half>(4)).dtype() == DType::float16);
    CHECK(Elements(std::vector<BFloat16>(4)).size_bytes() == 8);
    MutableElements out(floats);
    static_cast<float*>(out.data())[0] = 9;
    CHECK(span[0] == 9);
}
