/// Ranges into arrays: what comes in.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layout.hpp"
#include "stepwell/run.hpp"
#include "stepwell/v1/run.pb.h"

namespace stepwell {

class Decoder;

/// Memory that parts of groups go to. Segments are contiguous parts of a group's packed vector; they do not overlap.
class Destination {
public:
    explicit Destination(std::size_t groups) : segments_(groups) {}

    /// In the order of their offsets within a group.
    void add(std::uint32_t group, std::uint64_t offset_bytes, std::byte* target, std::size_t size_bytes);
    /// Where a range goes: calls `write` with memory, and from where to where the range's bytes belong there. Throws
    /// Failure with internal if it lies outside of what was asked for.
    void place(std::uint32_t group, std::uint64_t offset_bytes, std::size_t size_bytes,
               const std::function<void(std::byte*, std::size_t, std::size_t)>& write);
    /// Throws Failure with internal unless every byte has come; ranges do not overlap, so counting is enough.
    void check_full() const;

private:
    struct Segment {
        std::uint64_t offset_bytes;
        std::byte* target;
        std::size_t size_bytes;
    };

    std::vector<std::vector<Segment>> segments_;
    std::uint64_t size_bytes_ = 0;
    std::uint64_t filled_bytes_ = 0;
};

/// The arrays and rows of one selection, and where what comes is put.
class Received {
public:
    /// parameters: in the order in which they shall be returned. into: memory to fill, else fresh memory is used, one
    /// buffer per group. decoder: for ranges that come encoded; null for none.
    Received(const Layout& layout, std::vector<const LayoutParameter*> parameters, const std::vector<Output>& into,
             const std::vector<RowSelection>& rows, const Decoder* decoder);
    ~Received();

    /// Make room, or start over.
    void begin();
    void put(const v1::Range& range);
    void put(const v1::Rows& rows);
    /// The arrays, once all has come. unchanged: that nothing came, as it should be.
    Arrays arrays(bool unchanged);

private:
    struct RowsBuffer;

    void allocate();

    const Layout& layout_;
    std::vector<const LayoutParameter*> parameters_;
    std::vector<std::byte*> targets_;
    const Decoder* decoder_;
    std::optional<Destination> destination_;
    std::vector<std::unique_ptr<std::byte[]>> buffers_;
    std::vector<RowsBuffer> rows_;
};

}  // namespace stepwell
