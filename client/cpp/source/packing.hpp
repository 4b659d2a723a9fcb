/// Gradients and parameters into ranges, rows into pieces: what goes out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layout.hpp"
#include "stepwell/run.hpp"
#include "stepwell/v1/data.pb.h"

namespace stepwell {

/// The most data that one message carries, in bytes; 256 KiB and 4 MiB both cost a third more.
inline constexpr std::size_t range_bytes = 1 << 20;

using Bytes = Span<const std::byte>;

/// What an encoded range has beside its data.
struct Encoded {
    std::string name;
    std::uint64_t elements;
    std::string scales;
    std::string indices;
};

/// A range before it is a message.
struct Piece {
    std::uint32_t group = 0;
    std::uint64_t packed_offset_bytes = 0;
    /// The memory that is its data, one part after another.
    std::vector<Bytes> parts;
    std::uint32_t input = 0;
    /// The type of the data where it is not the group's.
    v1::DType dtype = v1::D_TYPE_UNSPECIFIED;
    std::optional<Encoded> encoded;
    /// What `parts` lie in, where that is the piece's own.
    std::shared_ptr<const std::vector<std::byte>> owned;

    std::size_t size_bytes() const;
    void write(v1::Range& message) const;
};

/// An array on its way out: it belongs at an offset of a group, which counts in the group's own type.
struct OutgoingArray {
    std::uint32_t group;
    std::uint64_t offset_bytes;
    Elements array;
    /// The type of the group's elements.
    DType group_dtype;
};

/// Cuts arrays into messages of at most so many bytes. Neighbours share a range, a large array is sliced.
class Packer {
public:
    explicit Packer(std::vector<OutgoingArray> parts, std::uint32_t input = 0,
                    std::size_t message_bytes_max = range_bytes);

    /// The pieces of the next message; false when there is none. There is at least one message, perhaps empty.
    bool next(std::vector<Piece>& message);

private:
    std::vector<OutgoingArray> parts_;
    std::uint32_t input_;
    std::size_t message_bytes_max_;
    std::size_t at_ = 0;
    /// Bytes of the part at `at_` that are packed already.
    std::size_t taken_ = 0;
    bool over_ = false;
};

/// Gradients of rows of one table, checked.
struct RowsPart {
    std::uint32_t table;
    std::uint64_t row_bytes;
    Span<const std::int64_t> ids;
    Bytes data;
    /// What `data` lies in, where that is its own.
    std::shared_ptr<const std::vector<std::byte>> owned = {};

    /// How many rows one message carries.
    std::size_t rows_per_message() const;
    /// Write rows begin, ..., begin + count - 1.
    void write(v1::Rows& message, std::size_t begin, std::size_t count) const;
};

/// The checked content of one update. It refers to the caller's memory.
class Update {
public:
    /// what: the call, for messages. Throws Failure with invalid_gradient or invalid_rows before anything is sent.
    Update(const Layout& layout, const Gradients& gradients, const UpdateOptions& options, const std::string& what);

    const std::vector<std::uint32_t>& without_gradient() const { return without_gradient_; }
    const std::vector<RowsPart>& rows() const { return rows_; }
    /// The ranges of gradients, then those of each input.
    std::vector<Packer> packers(std::size_t message_bytes_max) const;
    /// Names of the inputs, in the order of their numbers, which begin at 1.
    const std::vector<std::string>& inputs() const { return inputs_; }

private:
    std::vector<std::uint32_t> without_gradient_;
    std::vector<OutgoingArray> gradients_;
    std::vector<std::string> inputs_;
    std::vector<std::vector<OutgoingArray>> input_parts_;
    std::vector<RowsPart> rows_;
};

/// The values of a new run's parameters, by the layout that the server made of them.
std::vector<OutgoingArray> value_parts(const Layout& layout, const std::vector<Parameter>& parameters);

}  // namespace stepwell
