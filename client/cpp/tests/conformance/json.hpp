/// JSON, as cases have it and as what comes of them is told. Numbers are doubles; what needs all of 64 bits is text.
#pragma once

#include <google/protobuf/struct.pb.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace conformance {

using Json = google::protobuf::Value;

/// Something else came than a case expects, or the case cannot be carried out.
struct CaseFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Throws CaseFailed.
Json parse(const std::string& text);
Json read_file(const std::string& path);
/// On one line.
std::string text_of(const Json& json);
/// Its beginning, for messages.
std::string in_short(const Json& json);

/// The field of an object; null where it is none, or has no such field.
const Json* find(const Json& json, const std::string& name);
/// Throws CaseFailed where there is none. Likewise below, for another kind than is asked for.
const Json& at(const Json& json, const std::string& name);
/// By name, sorted.
std::map<std::string, const Json*> fields(const Json& object);
const google::protobuf::RepeatedPtrField<Json>& elements(const Json& list);
/// A number, or a text that says one that JSON lacks: "nan", "inf", "-inf".
double number(const Json& json);
std::optional<double> as_number(const Json& json);
const std::string& text(const Json& json);
bool flag(const Json& json);

inline bool is_null(const Json& json) { return json.kind_case() == Json::kNullValue; }
inline bool is_object(const Json& json) { return json.kind_case() == Json::kStructValue; }
/// Whether it tells an array: {"dtype", "shape", "values"}, or "fill" in place of "values".
bool is_array(const Json& json);

/// Of a number, a flag, a text, or null.
template <class T>
Json json(const T& value) {
    Json json;
    if constexpr (std::is_same_v<T, std::nullptr_t>) {
        json.set_null_value(google::protobuf::NULL_VALUE);
    } else if constexpr (std::is_same_v<T, bool>) {
        json.set_bool_value(value);
    } else if constexpr (std::is_arithmetic_v<T>) {
        json.set_number_value(static_cast<double>(value));
    } else {
        json.set_string_value(value);
    }
    return json;
}

template <class T>
Json json_or_null(const std::optional<T>& value) {
    return value ? json(*value) : json(nullptr);
}

Json object(std::map<std::string, Json> fields);
/// An object of what `make` makes of the values of a map.
template <class M, class Make>
Json object_of(const M& map, Make make) {
    std::map<std::string, Json> fields;
    for (const auto& [name, value] : map) fields[name] = make(value);
    return object(std::move(fields));
}

/// A list of what `make` makes of the elements.
template <class C, class Make>
Json list_of(const C& container, Make make) {
    Json json;
    json.mutable_list_value();
    for (const auto& each : container) *json.mutable_list_value()->add_values() = make(each);
    return json;
}

}  // namespace conformance
