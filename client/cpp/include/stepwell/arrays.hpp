/// Arrays of floats: what goes in as parameters and gradients, and what comes back. C order, little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "stepwell/span.hpp"

namespace stepwell {

/// The type of elements, with the contract's numbers.
enum class DType : int { float32 = 1, float64 = 2, float16 = 3, bfloat16 = 4 };

/// IEEE 754 binary16, by its bits.
struct Half {
    Half() = default;
    /// Rounds to nearest, half way to even; beyond 65504 it is infinite.
    explicit Half(float value);
    explicit operator float() const;
    std::uint16_t bits = 0;
};

/// bfloat16, the upper half of a binary32, by its bits.
struct BFloat16 {
    BFloat16() = default;
    /// Rounds to nearest, half way to even.
    explicit BFloat16(float value);
    explicit operator float() const;
    std::uint16_t bits = 0;
};

/// Lengths in elements, outermost first; empty for a single number.
using Shape = std::vector<std::uint64_t>;

/// The size of one element in bytes.
std::size_t element_bytes(DType dtype);

/// "float32", "float64", "float16" or "bfloat16".
const char* name_of(DType dtype);

namespace detail {

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> : std::integral_constant<DType, DType::float32> {};
template <>
struct DTypeOf<double> : std::integral_constant<DType, DType::float64> {};
template <>
struct DTypeOf<Half> : std::integral_constant<DType, DType::float16> {};
template <>
struct DTypeOf<BFloat16> : std::integral_constant<DType, DType::bfloat16> {};

template <class C>
using ElementOf = std::remove_pointer_t<decltype(std::data(std::declval<C&>()))>;

}  // namespace detail

/// Elements to read, of any of the four types: made of a vector, an array or a Span of float, double, Half or BFloat16.
class Elements {
public:
    template <class C, class T = std::remove_cv_t<detail::ElementOf<const C>>, DType dtype = detail::DTypeOf<T>::value>
    Elements(const C& container) : Elements(dtype, std::data(container), std::size(container)) {}
    Elements(DType dtype, const void* data, std::size_t size) : dtype_(dtype), data_(data), size_(size) {}

    DType dtype() const { return dtype_; }
    const void* data() const { return data_; }
    /// In elements.
    std::size_t size() const { return size_; }
    std::size_t size_bytes() const { return size_ * element_bytes(dtype_); }

private:
    DType dtype_;
    const void* data_;
    std::size_t size_;
};

/// Elements to write to.
class MutableElements {
public:
    template <class C, class T = detail::ElementOf<C>, DType dtype = detail::DTypeOf<T>::value>
    MutableElements(C& container) : MutableElements(dtype, std::data(container), std::size(container)) {}
    template <class T, DType dtype = detail::DTypeOf<T>::value>
    MutableElements(Span<T> span) : MutableElements(dtype, span.data(), span.size()) {}
    MutableElements(DType dtype, void* data, std::size_t size) : dtype_(dtype), data_(data), size_(size) {}

    DType dtype() const { return dtype_; }
    void* data() const { return data_; }
    std::size_t size() const { return size_; }
    std::size_t size_bytes() const { return size_ * element_bytes(dtype_); }

private:
    DType dtype_;
    void* data_;
    std::size_t size_;
};

/// A parameter of a new run: its name, its shape, and the values that it begins with.
struct Parameter {
    std::string name;
    Shape shape;
    Elements values;
};

/// Says that a parameter has no gradient in this update: it, its slots and its step stay as they are.
struct NoGradient {};
inline constexpr NoGradient no_gradient{};

/// A parameter's gradient. The type is the parameter's, or one that the server's state holds exactly (float16 for
/// float32). With a shape, that is compared with the parameter's, too; without, only the number of elements.
struct Gradient {
    Gradient(std::string name, Elements values) : name(std::move(name)), values(values) {}
    Gradient(std::string name, Shape shape, Elements values)
        : name(std::move(name)), values(values), shape(std::move(shape)) {}
    Gradient(std::string name, NoGradient) : name(std::move(name)) {}

    std::string name;
    std::optional<Elements> values;
    std::optional<Shape> shape;
};

using Gradients = std::vector<Gradient>;

/// Memory of the caller's that a parameter is to be written to.
struct Output {
    std::string name;
    MutableElements values;
};

/// A named array that came back.
struct Array {
    std::string name;
    Shape shape;
    DType dtype;
    void* data;
    /// In elements.
    std::size_t size;

    /// Its elements; empty where they are not of type T.
    template <class T>
    Span<T> as() const {
        return detail::DTypeOf<T>::value == dtype ? Span<T>(static_cast<T*>(data), size) : Span<T>();
    }
};

/// The values of rows of a table, one after another in the order of the ids that were asked for.
struct RowValues {
    std::string table;
    /// How many elements a row has.
    std::uint32_t width;
    Array values;

    /// The row at this place of the ids.
    template <class T>
    Span<T> row(std::size_t place) const {
        return values.as<T>().empty() ? Span<T>() : values.as<T>().subspan(place * width, width);
    }
};

/// Arrays by name, all at one version, in the run's order. They own their memory, one buffer per group, unless it was
/// the caller's (UpdateOptions::into). Moved, not copied.
class Arrays {
public:
    /// The array of this name; null where there is none.
    const Array* find(std::string_view name) const;
    /// The elements of the array of this name; empty where there is none, or it is not of type T.
    template <class T>
    Span<T> get(std::string_view name) const {
        const Array* array = find(name);
        return array ? array->as<T>() : Span<T>();
    }
    /// The rows of this table that were asked for; null where none were.
    const RowValues* find_rows(std::string_view table) const;

    std::size_t size() const { return arrays_.size(); }
    std::vector<Array>::const_iterator begin() const { return arrays_.begin(); }
    std::vector<Array>::const_iterator end() const { return arrays_.end(); }

    /// Whether nothing came, because the run is not beyond PullOptions::if_newer_than.
    bool unchanged() const { return unchanged_; }
    /// For `into`: the next parameters come to the same memory.
    std::vector<Output> outputs() const;

    /// How the library fills it.
    struct Builder;

private:
    std::vector<Array> arrays_;
    std::vector<RowValues> rows_;
    std::map<std::string, std::size_t, std::less<>> places_;
    std::vector<std::unique_ptr<std::byte[]>> buffers_;
    bool unchanged_ = false;
};

}  // namespace stepwell
