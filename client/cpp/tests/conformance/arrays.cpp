#include "arrays.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace conformance {

using namespace stepwell;

namespace {

/// To a type whose numbers have so many digits in binary; the least that has them all is 2^(exponent_min - 1).
double round_binary(double value, int digits, int exponent_min, double largest) {
    if (value == 0 || !std::isfinite(value)) return value;
    int exponent = 0;
    std::frexp(value, &exponent);
    const int unit = std::max(exponent, exponent_min) - digits;
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
    return std::fabs(rounded) > largest ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

template <class T>
void store(const std::vector<double>& values, std::vector<std::byte>& bytes) {
    std::vector<T> elements;
    elements.reserve(values.size());
    for (const double value : values) {
        // What is rounded already converts exactly.
        if constexpr (std::is_floating_point_v<T>) {
            elements.push_back(static_cast<T>(value));
        } else {
            elements.push_back(T(static_cast<float>(value)));
        }
    }
    bytes.resize(values.size() * sizeof(T));
    if (!bytes.empty()) std::memcpy(bytes.data(), elements.data(), bytes.size());
}

template <class T>
Json list_of_elements(const Elements& elements) {
    const Span<const T> span(static_cast<const T*>(elements.data()), elements.size());
    return list_of(span, [](T element) {
        if constexpr (std::is_floating_point_v<T>) return json(element);
        return json(static_cast<float>(element));
    });
}

}  // namespace

DType dtype_of(const Json& name) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
        if (text(name) == name_of(dtype)) return dtype;
    }
    throw CaseFailed("got the type " + in_short(name) + ", expected one of four: the case is wrong");
}

Shape shape_of(const Json& array) {
    Shape shape;
    for (const Json& length : elements(at(array, "shape"))) shape.push_back(static_cast<std::uint64_t>(number(length)));
    return shape;
}

double round_to(DType dtype, double value) {
    switch (dtype) {
        case DType::float32:
            return static_cast<double>(static_cast<float>(value));
        case DType::float16:
            return round_binary(value, 11, -13, 65504);
        case DType::bfloat16:
            return round_binary(value, 8, -125, 0x1.FEp127);
        default:
            return value;
    }
}

std::vector<double> rounded(const Json& array) {
    const DType dtype = dtype_of(at(array, "dtype"));
    std::size_t size = 1;
    for (const std::uint64_t length : shape_of(array)) size *= length;
    if (const Json* fill = find(array, "fill")) return std::vector<double>(size, round_to(dtype, number(*fill)));
    std::vector<double> values;
    for (const Json& value : elements(at(array, "values"))) values.push_back(round_to(dtype, number(value)));
    if (values.size() != size) throw CaseFailed("the array " + in_short(array) + " does not fit its shape");
    return values;
}

OwnedArray::OwnedArray(const Json& array) : OwnedArray(dtype_of(at(array, "dtype")), rounded(array)) {
    shape = shape_of(array);
}

OwnedArray::OwnedArray(DType dtype, const std::vector<double>& values) : dtype(dtype), shape{values.size()} {
    switch (dtype) {
        case DType::float32:
            store<float>(values, bytes);
            break;
        case DType::float64:
            store<double>(values, bytes);
            break;
        case DType::float16:
            store<Half>(values, bytes);
            break;
        case DType::bfloat16:
            store<BFloat16>(values, bytes);
            break;
    }
}

Json json_of(const Elements& elements, const Shape& shape) {
    Json values;
    switch (elements.dtype()) {
        case DType::float32:
            values = list_of_elements<float>(elements);
            break;
        case DType::float64:
            values = list_of_elements<double>(elements);
            break;
        case DType::float16:
            values = list_of_elements<Half>(elements);
            break;
        case DType::bfloat16:
            values = list_of_elements<BFloat16>(elements);
            break;
    }
    return object({{"dtype", json(name_of(elements.dtype()))},
                   {"shape", list_of(shape, [](std::uint64_t length) { return json(length); })},
                   {"values", std::move(values)}});
}

}  // namespace conformance
