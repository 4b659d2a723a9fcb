/// Layouts for tests of what rests on them.
#pragma once

#include <algorithm>

#include "failures.hpp"
#include "layout.hpp"

namespace testing {

struct Entry {
    const char* name;
    stepwell::Shape shape;
    std::uint32_t group;
};

/// Groups of these types, none frozen but those named; each parameter follows the one before in its group.
inline stepwell::Layout make_layout(const std::vector<stepwell::DType>& groups, const std::vector<Entry>& entries,
                                    const std::vector<std::uint32_t>& frozen = {}) {
    stepwell::v1::Layout message;
    for (const stepwell::DType dtype : groups) {
        auto& group = *message.add_groups();
        group.set_name("default");
        group.set_dtype(static_cast<stepwell::v1::DType>(static_cast<int>(dtype)));
    }
    for (const std::uint32_t number : frozen) message.mutable_groups(static_cast<int>(number))->set_frozen(true);
    for (const Entry& entry : entries) {
        auto& group = *message.mutable_groups(static_cast<int>(entry.group));
        auto& parameter = *message.add_parameters();
        parameter.set_name(entry.name);
        parameter.set_group(entry.group);
        parameter.set_packed_offset_bytes(group.packed_bytes());
        std::uint64_t size = stepwell::element_bytes(groups[entry.group]);
        for (const std::uint64_t length : entry.shape) {
            parameter.add_shape(length);
            size *= length;
        }
        group.set_packed_bytes(group.packed_bytes() + size);
    }
    message.set_last(true);
    return stepwell::Layout(message);
}

/// What a piece's parts hold, in a row, as elements of T.
template <class T, class P>
std::vector<T> elements_of(const P& piece) {
    std::vector<T> elements(piece.size_bytes() / sizeof(T));
    auto* at = reinterpret_cast<std::byte*>(elements.data());
    for (const auto& part : piece.parts) at = std::copy(part.begin(), part.end(), at);
    return elements;
}

/// The reason with which some work fails; `unknown` where it does not.
template <class Work>
stepwell::ErrorReason reason_of(Work&& work) {
    try {
        work();
    } catch (const stepwell::Failure& failure) {
        return failure.error.reason;
    }
    return stepwell::ErrorReason::unknown;
}

}  // namespace testing
