/// Where parameters lie: groups, each one packed vector, and the parameters in them.
///
/// Offsets count in the packed vector, without padding: consecutive parameters of a group are contiguous, and that is
/// what travels.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stepwell/arrays.hpp"
#include "stepwell/v1/run.pb.h"

namespace stepwell {

/// Parameters of one type that share an optimizer.
struct LayoutGroup {
    std::string name;
    DType dtype;
    std::uint64_t packed_bytes;
    bool frozen;
    /// Indices of its parameters, in the order of their offsets.
    std::vector<std::uint32_t> members;

    std::uint64_t elements() const { return packed_bytes / element_bytes(dtype); }
};

struct LayoutParameter {
    std::string name;
    /// Its place in the layout.
    std::uint32_t index;
    Shape shape;
    DType dtype;
    std::uint32_t group;
    /// Where it begins in its group, in bytes.
    std::uint64_t offset_bytes;
    std::uint64_t elements;
    bool frozen;

    std::uint64_t size_bytes() const { return elements * element_bytes(dtype); }
};

struct LayoutTable {
    std::string name;
    std::uint32_t index;
    std::uint32_t width;
    DType dtype;

    std::uint64_t row_bytes() const { return width * element_bytes(dtype); }
};

class Layout {
public:
    /// message: all pieces, merged. Throws Failure with internal where it is not whole or has gaps.
    explicit Layout(const v1::Layout& message);

    const std::vector<LayoutGroup>& groups() const { return groups_; }
    const std::vector<LayoutParameter>& parameters() const { return parameters_; }
    /// Null where there is none of this name.
    const LayoutParameter* find(const std::string& name) const;
    /// Throws Failure with unknown_parameter.
    const LayoutParameter& get(const std::string& name) const;
    /// Throws Failure with unknown_table.
    const LayoutTable& get_table(const std::string& name) const;
    const LayoutTable* table_at(std::uint32_t index) const;
    /// The names of those that take gradients.
    std::vector<std::string> trained_names() const;

private:
    void check() const;

    std::vector<LayoutGroup> groups_;
    std::vector<LayoutParameter> parameters_;
    std::vector<LayoutTable> tables_;
    std::map<std::string, std::uint32_t> by_name_;
};

/// The contract's type, as ours; throws Failure with internal for one that this library does not know.
DType decode_dtype(v1::DType dtype);

/// Names for a message, the first few.
std::string listed(const std::vector<std::string>& names);

/// A shape for a message: (3, 4).
std::string in_words(const Shape& shape);

}  // namespace stepwell
