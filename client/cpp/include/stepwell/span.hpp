/// A view of elements that somebody else owns.
#pragma once

#include <cstddef>
#include <iterator>
#include <type_traits>
#include <utility>

namespace stepwell {

/// A pointer and how many elements lie there. Made of anything with data() and size(), and of arrays; a Span<const T>
/// also of what holds T. It owns nothing: what it was made of has to outlive the call that it is given to.
template <class T>
class Span {
    template <class C>
    using ElementOf = std::remove_pointer_t<decltype(std::data(std::declval<C&>()))>;

public:
    using value_type = std::remove_cv_t<T>;

    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}

    template <class C, class = std::enable_if_t<!std::is_same_v<std::decay_t<C>, Span> &&
                                                std::is_convertible_v<ElementOf<C> (*)[], T (*)[]>>>
    constexpr Span(C&& container) noexcept : data_(std::data(container)), size_(std::size(container)) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T& operator[](std::size_t index) const noexcept { return data_[index]; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr Span subspan(std::size_t begin, std::size_t size) const noexcept { return {data_ + begin, size}; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace stepwell
