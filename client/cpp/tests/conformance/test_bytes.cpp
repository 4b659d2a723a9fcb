// tests/conformance/bytes: messages and packed arrays, against their bytes.
#include <doctest/doctest.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <memory>

#include "../layouts.hpp"
#include "arrays.hpp"
#include "cases.hpp"
#include "compare.hpp"
#include "encoding.hpp"
#include "failures.hpp"
#include "given.hpp"
#include "receiving.hpp"

using namespace conformance;
using namespace stepwell;

namespace {

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (std::size_t at = 0; at + 1 < hex.size(); at += 2) {
        bytes += static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16));
    }
    return bytes;
}

std::string to_hex(const std::string& bytes) {
    std::string hex;
    for (const unsigned char byte : bytes) {
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    return hex;
}

/// An empty message of the contract, by its full name.
std::unique_ptr<google::protobuf::Message> new_message(const std::string& name) {
    const auto* type = google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(name);
    if (!type) throw CaseFailed("there is no message " + name);
    return std::unique_ptr<google::protobuf::Message>(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
}

void expect(bool holds, const std::string& got, const std::string& expected) {
    if (!holds) throw CaseFailed("got " + got + "\nexpected " + expected);
}

/// The status of a failed call, of which the client has a message of its own: what it makes of one.
void check_status(const Json& file) {
    const Json &status = at(file, "json"), &info = elements(at(status, "details"))[0];
    const auto code = static_cast<grpc::StatusCode>(static_cast<int>(number(at(status, "code"))));
    const Break broken = Break::of(grpc::Status(code, "", from_hex(text(at(file, "hex")))));
    if (!broken.error) throw CaseFailed("got no error of the status");
    check_error(*broken.error, object({{"reason", at(info, "reason")}, {"details", at(info, "metadata")}}));
    expect(broken.error->message == text(at(status, "message")), broken.error->message, text(at(status, "message")));
}

/// Throws CaseFailed where a message has other bytes, or bytes are another message.
void check_message(const Json& file) {
    const std::string &type = text(at(file, "message")), &hex = text(at(file, "hex"));
    if (type == "google.rpc.Status") return check_status(file);
    const auto told = new_message(type), read = new_message(type);
    const auto status = google::protobuf::util::JsonStringToMessage(text_of(at(file, "json")), told.get());
    expect(status.ok(), status.ToString(), "a message");
    expect(to_hex(told->SerializeAsString()) == hex, to_hex(told->SerializeAsString()), hex);
    const bool parsed = read->ParseFromString(from_hex(hex));
    expect(parsed && google::protobuf::util::MessageDifferencer::Equals(*read, *told), read->ShortDebugString(),
           told->ShortDebugString());
}

/// A range as files tell it.
Json tell_range(const v1::Range& range) {
    return object({{"data", json(to_hex(range.data()))},
                   {"scales", json(to_hex(range.scales()))},
                   {"indices", json(to_hex(range.indices()))},
                   {"dtype", json(range.dtype() == v1::D_TYPE_UNSPECIFIED ? "" : name_of(decode_dtype(range.dtype())))},
                   {"encoding", json(range.encoding())},
                   {"elements", json(range.elements())}});
}

v1::Range range_of(const Json& told) {
    v1::Range range;
    range.set_data(from_hex(text(at(told, "data"))));
    range.set_scales(from_hex(text(at(told, "scales"))));
    range.set_indices(from_hex(text(at(told, "indices"))));
    range.set_encoding(text(at(told, "encoding")));
    range.set_elements(static_cast<std::uint64_t>(number(at(told, "elements"))));
    const Json& dtype = at(told, "dtype");
    if (!text(dtype).empty()) range.set_dtype(static_cast<v1::DType>(static_cast<int>(dtype_of(dtype))));
    return range;
}

/// Numbers of a file as an array.
Json array_json(const Json& file, const char* name, const Json& dtype) {
    const Json& values = at(file, name);
    return object({{"dtype", dtype},
                   {"shape", list_of(std::vector<int>{elements(values).size()}, json<int>)},
                   {"values", values}});
}

OwnedArray array_of(const Json& file, const char* name) {
    return OwnedArray(array_json(file, name, at(file, "dtype")));
}

std::optional<Part> encoding_of(const Json& file) {
    Arguments all(&file);
    return all.take_part("encoding");
}

Layout layout_of(DType dtype, std::uint64_t size) { return testing::make_layout({dtype}, {{"w", {size}, 0}}); }

/// What the client sends of gradients.
v1::Range sent(const OwnedArray& array, const std::optional<Part>& encoding) {
    const Layout layout = layout_of(array.dtype, array.view().size());
    std::vector<Piece> pieces;
    Packer({{0, 0, array.view(), array.dtype}}).next(pieces);
    if (encoding) {
        Encoder encoder(*encoding);
        pieces = EncodedUpdate(encoder, layout).add(pieces);
    }
    v1::Range range;
    pieces.at(0).write(range);
    return range;
}

/// What the client makes of parameters that came.
Json received(const v1::Range& range, const std::optional<Part>& encoding, DType dtype, std::size_t size) {
    const Layout layout = layout_of(dtype, size);
    std::optional<Decoder> decoder;
    if (encoding) decoder.emplace(*encoding);
    Received received(layout, {&layout.get("w")}, {}, {}, decoder ? &*decoder : nullptr);
    received.begin();
    received.put(range);
    const Arrays arrays = received.arrays(false);
    const Array& array = *arrays.find("w");
    return json_of({array.dtype, array.data, array.size}, array.shape);
}

/// What the client takes the other end to make of gradients.
template <class T>
std::vector<float> taken(const OwnedArray& values, const Part& encoding) {
    const Span<const T> elements(reinterpret_cast<const T*>(values.bytes.data()), values.view().size());
    return encode<T>(encoding.name, encoding.arguments, elements).decoded;
}

/// Throws CaseFailed where an array has other bytes, or bytes are another array.
void check_array(const Json& file) {
    const std::optional<Part> encoding = encoding_of(file);
    const std::string& direction = text(at(file, "direction"));
    const OwnedArray values = array_of(file, "values"), decoded = array_of(file, "decoded");
    if (direction != "parameters") compare(tell_range(sent(values, encoding)), at(file, "range"));
    if (direction == "gradients") {
        const std::vector<float> got = values.dtype == DType::float64 ? taken<double>(values, encoding.value())
                                                                      : taken<float>(values, encoding.value());
        compare(json_of(got, {got.size()}), array_json(file, "decoded", json("float32")));
    } else {
        compare(received(range_of(at(file, "range")), encoding, decoded.dtype, decoded.view().size()),
                json_of(decoded.view(), decoded.shape));
    }
}

/// Whether a check objects to a file in which a text ends with another digit.
bool objects(void (*check)(const Json&), const Json& file, std::initializer_list<const char*> path) {
    Json changed = file;
    Json* at = &changed;
    for (const char* name : path) at = &(*at->mutable_struct_value()->mutable_fields())[name];
    std::string changed_text = text(*at);
    if (changed_text.empty()) return true;
    changed_text.back() = changed_text.back() == '1' ? '2' : '1';
    *at = json(changed_text);
    try {
        check(changed);
    } catch (const CaseFailed&) {
        return true;
    }
    return false;
}

}  // namespace

TEST_CASE("messages have their bytes") {
    const Files files = read_directory("bytes/messages");
    REQUIRE(!files.empty());
    for (const auto& [file, content] : files) {
        CAPTURE(file);
        CHECK_NOTHROW(check_message(content));
        CHECK(objects(check_message, content, {"hex"}));
    }
}

TEST_CASE("arrays have their bytes") {
    const Files files = read_directory("bytes/arrays");
    REQUIRE(!files.empty());
    for (const auto& [file, content] : files) {
        CAPTURE(file);
        CHECK_NOTHROW(check_array(content));
        CHECK(objects(check_array, content, {"range", "data"}));
        CHECK(objects(check_array, content, {"range", "scales"}));
    }
}
