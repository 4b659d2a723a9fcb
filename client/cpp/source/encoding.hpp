/// Encodings on the worker's side: gradients made smaller, what that drops sent later, encoded parameters made whole.
///
/// Error feedback: what an update did not carry of a gradient is owed, added to the next one, and sent as far as that
/// one carries it. It is settled only when the server has committed the update: one that leaves no trace there leaves
/// none here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "packing.hpp"
#include "stepwell/v1/run.pb.h"
#include "stepwell/values.hpp"

namespace stepwell {

/// What an encoding makes of some elements. T is float, or double for gradients of that type.
template <class T>
struct Codes {
    std::vector<std::byte> data;
    std::string scales;
    std::string indices;
    /// What the other end will make of it.
    std::vector<float> decoded;
    /// Whether the other end will take all of it for finite.
    bool finite = true;
};

/// Encode elements by name (float32, bfloat16, float16, int8, sign, top_k), with the arguments of the run's
/// description. Throws Failure with internal for a name that this library does not know.
template <class T>
Codes<T> encode(const std::string& name, const Values& arguments, Span<const T> elements);

/// Elements in another type.
std::vector<std::byte> convert(Bytes elements, DType from, DType to);

/// One worker's encoder of gradients.
class Encoder {
public:
    /// spec: with all arguments, as the run's description has it.
    explicit Encoder(Part spec);

    bool feedback() const { return feedback_; }
    /// How much of the gradients is encoded at a time: what takes at most half of it fills a message.
    std::size_t piece_bytes() const { return piece_bytes_; }
    /// Have the memory that error feedback takes: two numbers for each element.
    void prepare(const Layout& layout);
    /// An encoded piece; `count` becomes the number of elements that were encoded: none of those that would not become
    /// smaller.
    Piece encode(const Piece& piece, const Layout& layout, std::size_t& count);

    /// By group, begin and end of what an update encoded, in elements.
    using Covered = std::map<std::uint32_t, std::vector<std::pair<std::size_t, std::size_t>>>;
    /// The update was committed: what it left out is owed from now on, and what it did not touch still is.
    void settle(Covered covered);

private:
    using Owed = std::variant<std::vector<float>, std::vector<double>>;

    template <class T>
    Piece encode_as(const Piece& piece, DType dtype, std::size_t begin, std::size_t count);
    v1::DType cast(DType dtype) const;

    Part spec_;
    bool feedback_;
    std::size_t piece_bytes_;
    /// By group: what was not sent yet of each element, and what will be owed once the present update is committed.
    std::map<std::uint32_t, Owed> owed_, next_;
};

/// One update's encoded messages. With error feedback they are kept for retries: the same bytes go out again. Of an
/// encoder's updates only the last one can be settled.
class EncodedUpdate {
public:
    EncodedUpdate(Encoder& encoder, const Layout& layout) : encoder_(encoder), layout_(layout) {}

    std::size_t piece_bytes() const { return encoder_.piece_bytes(); }
    /// Encode the pieces of one message; inputs beside the gradients stay as they are.
    std::vector<Piece> add(const std::vector<Piece>& pieces);
    /// The messages that were made, where they are kept.
    const std::vector<std::vector<Piece>>& made() const { return made_; }
    /// The update was committed.
    void settle();

private:
    Encoder& encoder_;
    const Layout& layout_;
    std::vector<std::vector<Piece>> made_;
    Encoder::Covered covered_;
};

/// Makes plain elements of the ranges in which a server sends parameters.
class Decoder {
public:
    explicit Decoder(Part spec) : spec_(std::move(spec)) {}

    /// A range as elements of its group's type.
    std::vector<std::byte> decode(const v1::Range& range, DType dtype) const;

private:
    Part spec_;
};

}  // namespace stepwell
