#include "encoding.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "failures.hpp"
#include "half.hpp"

namespace stepwell {

namespace {

constexpr std::size_t encoded_piece_bytes = 2 * range_bytes;
/// Above it top_k, which sends 5 bytes for an element, may make more of 16-bit gradients than a message takes.
constexpr double density_max = 0.5;
constexpr float int8_max = 127.0F;
constexpr std::uint16_t half_max_bits = 0x7BFF;
constexpr std::size_t gap_goes_on = 255;

double number(const Part& spec, const char* name, double absent) {
    const auto found = spec.arguments.find(name);
    const double* value = found == spec.arguments.end() ? nullptr : found->second.number();
    return value ? *value : absent;
}

std::size_t block_of(const Values& arguments) {
    const auto found = arguments.find("block");
    const double* block = found == arguments.end() ? nullptr : found->second.number();
    if (!block || !(*block >= 1)) {
        fail(ErrorReason::internal, "got an encoding without the size of its blocks; upgrade stepwell");
    }
    return static_cast<std::size_t>(*block);
}

template <class T>
void append(std::string& bytes, T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class E, class T>
std::vector<std::byte> as_bytes(const std::vector<E, T>& elements) {
    const auto* begin = reinterpret_cast<const std::byte*>(elements.data());
    return {begin, begin + elements.size() * sizeof(E)};
}

bool all_finite(const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

template <class T>
Codes<T> encode_float32(Span<const T> elements) {
    Codes<T> codes;
    codes.decoded.assign(elements.begin(), elements.end());
    codes.data = as_bytes(codes.decoded);
    codes.finite = all_finite(codes.decoded);
    return codes;
}

template <class T>
Codes<T> encode_bfloat16(Span<const T> elements) {
    Codes<T> codes;
    std::vector<std::uint16_t> halves(elements.size());
    codes.decoded.resize(elements.size());
    for (std::size_t index = 0; index < elements.size(); ++index) {
        halves[index] = to_bfloat16_away(static_cast<float>(elements[index]));
        codes.decoded[index] = from_bfloat16(halves[index]);
    }
    codes.data = as_bytes(halves);
    codes.finite = all_finite(codes.decoded);
    return codes;
}

template <class T>
Codes<T> encode_float16(Span<const T> elements, const Part& spec) {
    Codes<T> codes;
    const auto scale = static_cast<float>(number(spec, "scale", 1.0));
    std::vector<std::uint16_t> halves(elements.size());
    codes.decoded.resize(elements.size());
    for (std::size_t index = 0; index < elements.size(); ++index) {
        std::uint16_t half = to_half(elements[index] * scale);
        if ((half & 0x7FFF) == 0x7C00 && std::isfinite(elements[index])) half = (half & 0x8000) | half_max_bits;
        halves[index] = half;
        codes.decoded[index] = from_half(half) / scale;
        codes.finite = codes.finite && (half & 0x7C00) != 0x7C00;
    }
    codes.data = as_bytes(halves);
    append(codes.scales, scale);
    return codes;
}

template <class T>
Codes<T> encode_int8(Span<const T> elements, std::size_t block) {
    Codes<T> codes;
    // The largest scale whose 127-fold is finite.
    static const float scale_max = std::nextafter(std::numeric_limits<float>::max() / int8_max, 0.0F);
    codes.data.resize(elements.size());
    codes.decoded.resize(elements.size());
    for (std::size_t begin = 0; begin < elements.size(); begin += block) {
        const std::size_t end = std::min(begin + block, elements.size());
        T largest = 0;
        bool nan = false;
        for (std::size_t index = begin; index < end; ++index) {
            nan = nan || std::isnan(elements[index]);
            largest = std::max(largest, std::fabs(elements[index]));
        }
        float scale = nan ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(largest / int8_max);
        const bool finite = std::isfinite(scale);
        if (finite) scale = std::min(scale, scale_max);
        codes.finite = codes.finite && finite;
        append(codes.scales, scale);
        const float divisor = scale > 0 ? scale : 1.0F;
        for (std::size_t index = begin; index < end; ++index) {
            // Tiny scales are rounded coarsely, so a quotient may lie beyond 127; in a block that is not finite all is.
            T quotient = finite ? std::nearbyint(elements[index] / divisor) : T(0);
            quotient = std::clamp(quotient, T(-int8_max), T(int8_max));
            const auto code = static_cast<std::int8_t>(quotient);
            codes.data[index] = static_cast<std::byte>(code);
            codes.decoded[index] = static_cast<float>(code) * scale;
        }
    }
    return codes;
}

template <class T>
Codes<T> encode_sign(Span<const T> elements, std::size_t block) {
    Codes<T> codes;
    codes.data.resize((elements.size() + 7) / 8);
    codes.decoded.resize(elements.size());
    for (std::size_t begin = 0; begin < elements.size(); begin += block) {
        const std::size_t end = std::min(begin + block, elements.size());
        double sum = 0;  // of large float32 it stays finite
        for (std::size_t index = begin; index < end; ++index) sum += std::fabs(elements[index]);
        const auto scale = static_cast<float>(sum / static_cast<double>(end - begin));
        codes.finite = codes.finite && std::isfinite(scale);
        append(codes.scales, scale);
        for (std::size_t index = begin; index < end; ++index) {
            const bool negative = elements[index] < 0;
            if (negative) codes.data[index / 8] |= std::byte{1} << (index % 8);
            codes.decoded[index] = negative ? -scale : scale;
        }
    }
    return codes;
}

/// How many elements lie before each place, since the one before, in bytes; 255 says that the count goes on.
std::string gaps_of(const std::vector<std::uint32_t>& places) {
    std::string gaps;
    std::size_t next = 0;
    for (const std::uint32_t place : places) {
        std::size_t gap = place - next;
        for (; gap >= gap_goes_on; gap -= gap_goes_on) gaps += static_cast<char>(gap_goes_on);
        gaps += static_cast<char>(gap);
        next = place + std::size_t{1};
    }
    return gaps;
}

template <class T>
Codes<T> encode_top_k(Span<const T> elements, const Part& spec) {
    const double wanted = std::ceil(static_cast<double>(elements.size()) * number(spec, "density", 0.01));
    const std::size_t count = std::min(elements.size(), static_cast<std::size_t>(wanted));
    std::vector<std::uint32_t> places(elements.size());
    std::iota(places.begin(), places.end(), 0U);
    const auto size_of = [&elements](std::uint32_t place) {
        const T size = std::fabs(elements[place]);
        return std::isnan(size) ? std::numeric_limits<T>::infinity() : size;  // a NaN counts as the largest
    };
    const auto larger = [&size_of](std::uint32_t left, std::uint32_t right) {
        const T a = size_of(left), b = size_of(right);
        return a != b ? a > b : left < right;
    };
    std::nth_element(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(count), places.end(), larger);
    places.resize(count);
    std::sort(places.begin(), places.end());
    Codes<T> codes;
    codes.decoded.assign(elements.size(), 0.0F);
    std::vector<float> values;
    for (const std::uint32_t place : places) {
        values.push_back(static_cast<float>(elements[place]));
        codes.decoded[place] = values.back();
    }
    codes.data = as_bytes(values);
    codes.indices = gaps_of(places);
    codes.finite = all_finite(values);
    return codes;
}

/// The elements of a piece in a row, widened.
template <class T>
std::vector<T> joined(const std::vector<Bytes>& parts, DType dtype, std::size_t count) {
    std::vector<T> elements;
    elements.reserve(count);
    for (const Bytes& part : parts) {
        const std::size_t size = part.size() / element_bytes(dtype);
        for (std::size_t index = 0; index < size; ++index) {
            const std::byte* at = part.data() + index * element_bytes(dtype);
            if (dtype == DType::float64) {
                double value;
                std::memcpy(&value, at, sizeof value);
                elements.push_back(static_cast<T>(value));
            } else if (dtype == DType::float32) {
                float value;
                std::memcpy(&value, at, sizeof value);
                elements.push_back(static_cast<T>(value));
            } else {
                std::uint16_t bits;
                std::memcpy(&bits, at, sizeof bits);
                elements.push_back(static_cast<T>(dtype == DType::float16 ? from_half(bits) : from_bfloat16(bits)));
            }
        }
    }
    return elements;
}

}  // namespace

std::vector<std::byte> convert(Bytes elements, DType from, DType to) {
    const std::size_t count = elements.size() / element_bytes(from);
    if (from == to) return {elements.begin(), elements.end()};
    if (to == DType::float64) return as_bytes(joined<double>({elements}, from, count));
    const std::vector<float> floats = joined<float>({elements}, from, count);
    if (to == DType::float32) return as_bytes(floats);
    std::vector<std::uint16_t> halves(count);
    for (std::size_t index = 0; index < count; ++index) {
        halves[index] = to == DType::float16 ? to_half(floats[index]) : to_bfloat16(floats[index]);
    }
    return as_bytes(halves);
}

template <class T>
Codes<T> encode(const std::string& name, const Values& arguments, Span<const T> elements) {
    const Part spec(name, arguments);
    if (name == "float32") return encode_float32(elements);
    if (name == "bfloat16") return encode_bfloat16(elements);
    if (name == "float16") return encode_float16(elements, spec);
    if (name == "int8") return encode_int8(elements, block_of(arguments));
    if (name == "sign") return encode_sign(elements, block_of(arguments));
    if (name == "top_k") return encode_top_k(elements, spec);
    fail(ErrorReason::internal, "got the encoding '" + name +
                                    "' of the run, expected one that this library knows; "
                                    "upgrade stepwell");
}

template Codes<float> encode(const std::string&, const Values&, Span<const float>);
template Codes<double> encode(const std::string&, const Values&, Span<const double>);

Encoder::Encoder(Part spec)
    : spec_(std::move(spec)),
      feedback_(false),
      piece_bytes_(number(spec_, "density", 0.0) <= density_max ? encoded_piece_bytes : range_bytes) {
    const auto found = spec_.arguments.find("error_feedback");
    if (found != spec_.arguments.end() && found->second.flag()) feedback_ = *found->second.flag();
}

void Encoder::prepare(const Layout& layout) {
    if (!feedback_ || !owed_.empty()) return;
    std::uint32_t number = 0;
    for (const LayoutGroup& group : layout.groups()) {
        if (!group.frozen) {
            if (group.dtype == DType::float64) {
                owed_[number] = next_[number] = std::vector<double>(group.elements());
            } else {
                owed_[number] = next_[number] = std::vector<float>(group.elements());
            }
        }
        ++number;
    }
}

Piece Encoder::encode(const Piece& piece, const Layout& layout, std::size_t& count) {
    const LayoutGroup& group = layout.groups()[piece.group];
    const DType dtype = piece.dtype == v1::D_TYPE_UNSPECIFIED ? group.dtype : decode_dtype(piece.dtype);
    const std::size_t begin = piece.packed_offset_bytes / element_bytes(group.dtype);
    count = piece.size_bytes() / element_bytes(dtype);
    const bool is_cast = spec_.name == "float32" || spec_.name == "bfloat16";
    if (is_cast && cast(dtype) == v1::D_TYPE_UNSPECIFIED) {
        count = 0;
        return piece;
    }
    return dtype == DType::float64 ? encode_as<double>(piece, dtype, begin, count)
                                   : encode_as<float>(piece, dtype, begin, count);
}

template <class T>
Piece Encoder::encode_as(const Piece& piece, DType dtype, std::size_t begin, std::size_t count) {
    std::vector<T> elements = joined<T>(piece.parts, dtype, count);
    // What is owed has the type of the group, which may be wider than this update's.
    const auto with_owed = [&](auto& owed) {
        for (std::size_t index = 0; index < count; ++index) {
            elements[index] = static_cast<T>(elements[index] + owed[begin + index]);
        }
    };
    if (feedback_) std::visit(with_owed, owed_.at(piece.group));
    Codes<T> codes = stepwell::encode<T>(spec_.name, spec_.arguments, elements);
    const auto keep = [&](auto& next) {
        using N = typename std::decay_t<decltype(next)>::value_type;
        for (std::size_t index = 0; index < count; ++index) {
            const T left = elements[index] - static_cast<T>(codes.decoded[index]);
            // Whoever allows what is not finite gets it as it is, and once.
            next[begin + index] = std::isfinite(left) || codes.finite ? static_cast<N>(left) : N(0);
        }
    };
    if (feedback_) std::visit(keep, next_.at(piece.group));
    Piece encoded{piece.group, piece.packed_offset_bytes, {}, 0, cast(dtype), {}, {}};
    if (encoded.dtype == v1::D_TYPE_UNSPECIFIED) {
        encoded.encoded = Encoded{spec_.name, count, std::move(codes.scales), std::move(codes.indices)};
    }
    encoded.owned = std::make_shared<const std::vector<std::byte>>(std::move(codes.data));
    encoded.parts.emplace_back(*encoded.owned);
    return encoded;
}

/// The type that elements are cast to, where the encoding is one and narrower than what they have.
v1::DType Encoder::cast(DType dtype) const {
    if (spec_.name == "float32" && element_bytes(dtype) > 4) return v1::D_TYPE_FLOAT32;
    if (spec_.name == "bfloat16" && element_bytes(dtype) > 2) return v1::D_TYPE_BFLOAT16;
    return v1::D_TYPE_UNSPECIFIED;
}

void Encoder::settle(Covered covered) {
    for (auto& [group, vector] : next_) {
        auto& ranges = covered[group];
        std::sort(ranges.begin(), ranges.end());
        std::visit(
            [&ranges = ranges, &owed = owed_.at(group)](auto& next) {
                const auto& kept = std::get<std::decay_t<decltype(next)>>(owed);
                ranges.emplace_back(next.size(), next.size());
                std::size_t end = 0;
                for (const auto& [begin, after] : ranges) {
                    std::copy(kept.begin() + static_cast<std::ptrdiff_t>(end),
                              kept.begin() + static_cast<std::ptrdiff_t>(begin),
                              next.begin() + static_cast<std::ptrdiff_t>(end));
                    end = after;
                }
            },
            vector);
    }
    std::swap(owed_, next_);
}

std::vector<Piece> EncodedUpdate::add(const std::vector<Piece>& pieces) {
    encoder_.prepare(layout_);
    std::vector<Piece> message;
    for (const Piece& piece : pieces) {
        std::size_t count = 0;
        message.push_back(piece.input ? piece : encoder_.encode(piece, layout_, count));
        if (count == 0) continue;
        const std::size_t begin = piece.packed_offset_bytes / element_bytes(layout_.groups()[piece.group].dtype);
        covered_[piece.group].emplace_back(begin, begin + count);
    }
    if (encoder_.feedback()) made_.push_back(message);
    return message;
}

void EncodedUpdate::settle() {
    if (encoder_.feedback()) encoder_.settle(covered_);
}

std::vector<std::byte> Decoder::decode(const v1::Range& range, DType dtype) const {
    const std::string& data = range.data();
    const Bytes bytes(reinterpret_cast<const std::byte*>(data.data()), data.size());
    if (range.dtype() != v1::D_TYPE_UNSPECIFIED) {
        return convert(bytes, decode_dtype(range.dtype()), dtype);
    }
    if (range.encoding() != "int8" || spec_.arguments.count("block") == 0) {
        fail(ErrorReason::internal,
             "got a range in encoding '" + range.encoding().substr(0, 50) + "', expected the run's; upgrade stepwell");
    }
    const std::size_t block = block_of(spec_.arguments);
    const std::size_t blocks = (data.size() + block - 1) / block;
    if (data.size() != range.elements() || range.scales().size() != blocks * sizeof(float)) {
        fail(ErrorReason::internal, "got " + std::to_string(data.size()) + " codes and " +
                                        std::to_string(range.scales().size()) +
                                        " bytes of scales, which do not fit; report this");
    }
    std::vector<float> elements(data.size());
    for (std::size_t index = 0; index < elements.size(); ++index) {
        float scale;
        std::memcpy(&scale, range.scales().data() + index / block * sizeof scale, sizeof scale);
        elements[index] = static_cast<float>(static_cast<std::int8_t>(data[index])) * scale;
    }
    return convert({reinterpret_cast<const std::byte*>(elements.data()), elements.size() * sizeof(float)},
                   DType::float32, dtype);
}

}  // namespace stepwell
