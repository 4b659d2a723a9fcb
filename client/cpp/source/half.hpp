/// Floats of 16 bits, by their bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace stepwell {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// binary16 of a float32 or float64: rounded once, to nearest, half way to even; beyond 65519 infinite.
template <class T>
std::uint16_t to_half(T value) {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return sign | 0x7E00;
    const T size = std::fabs(value);
    if (!(size < T(65520))) return sign | 0x7C00;
    if (size < T(6.103515625e-05)) {
        // Subnormal: a multiple of 2^-24; 1024 of them are the least normal number, whose bits that is, too.
        return sign | static_cast<std::uint16_t>(std::nearbyint(std::ldexp(size, 24)));
    }
    int exponent;
    const T fraction = std::frexp(size, &exponent);                                           // 0.5 to 1
    const auto units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 to 2048
    // 2048 units carry into the exponent by themselves.
    return sign | static_cast<std::uint16_t>(((exponent + 14) << 10) + (units - 1024));
}

inline float from_half(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
    const std::uint32_t exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
    if (exponent == 0x1F) return float_of(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) {
        const float size = std::ldexp(static_cast<float>(fraction), -24);
        return sign ? -size : size;
    }
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

/// bfloat16 of a float32, rounded to nearest, half way to even.
inline std::uint16_t to_bfloat16(float value) {
    if (std::isnan(value)) return 0x7FC0;
    const std::uint32_t bits = bits_of(value);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/// The same, half way away from zero: what gradients are encoded with, as the other clients do.
inline std::uint16_t to_bfloat16_away(float value) {
    if (std::isnan(value)) return 0x7FC0;
    return static_cast<std::uint16_t>((bits_of(value) + 0x8000) >> 16);
}

inline float from_bfloat16(std::uint16_t bits) { return float_of(static_cast<std::uint32_t>(bits) << 16); }

}  // namespace stepwell
