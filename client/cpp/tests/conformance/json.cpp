#include "json.hpp"

#include <google/protobuf/util/json_util.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

namespace conformance {

namespace {

constexpr std::size_t short_length = 500;

[[noreturn]] void other_kind(const Json& json, const char* expected) {
    throw CaseFailed("got " + in_short(json) + ", expected " + expected + ": the case is wrong");
}

void write(const Json& json, std::ostream& out) {
    const char* separator = "";
    switch (json.kind_case()) {
        case Json::kNumberValue:
            out << json.number_value();
            break;
        case Json::kBoolValue:
            out << (json.bool_value() ? "true" : "false");
            break;
        case Json::kStringValue:
            out << '"' << json.string_value() << '"';
            break;
        case Json::kListValue:
            out << '[';
            for (const Json& each : json.list_value().values()) {
                out << separator;
                write(each, out);
                separator = ", ";
            }
            out << ']';
            break;
        case Json::kStructValue:
            out << '{';
            for (const auto& [name, value] : fields(json)) {
                out << separator << '"' << name << "\": ";
                write(*value, out);
                separator = ", ";
            }
            out << '}';
            break;
        default:
            out << "null";
    }
}

}  // namespace

Json parse(const std::string& text) {
    Json json;
    const auto status = google::protobuf::util::JsonStringToMessage(text, &json);
    if (!status.ok()) throw CaseFailed("no JSON: " + status.ToString());
    return json;
}

Json read_file(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) throw CaseFailed("cannot read " + path);
    return parse(text.str());
}

std::string text_of(const Json& json) {
    std::string text;
    const auto status = google::protobuf::util::MessageToJsonString(json, &text);
    if (!status.ok()) throw CaseFailed("cannot be told as JSON: " + status.ToString());
    return text;
}

// By hand: protobuf's own order of fields is any, and it does not write numbers that JSON lacks.
std::string in_short(const Json& json) {
    std::ostringstream out;
    out.precision(std::numeric_limits<double>::max_digits10);
    write(json, out);
    const std::string text = out.str();
    return text.size() <= short_length ? text : text.substr(0, short_length) + "...";
}

const Json* find(const Json& json, const std::string& name) {
    const auto& fields = json.struct_value().fields();
    const auto found = fields.find(name);
    return found == fields.end() ? nullptr : &found->second;
}

const Json& at(const Json& json, const std::string& name) {
    const Json* found = find(json, name);
    if (!found) throw CaseFailed("got " + in_short(json) + ", expected a field '" + name + "': the case is wrong");
    return *found;
}

std::map<std::string, const Json*> fields(const Json& object) {
    if (!is_object(object)) other_kind(object, "an object");
    std::map<std::string, const Json*> sorted;
    for (const auto& [name, value] : object.struct_value().fields()) sorted[name] = &value;
    return sorted;
}

const google::protobuf::RepeatedPtrField<Json>& elements(const Json& list) {
    if (list.kind_case() != Json::kListValue) other_kind(list, "a list");
    return list.list_value().values();
}

std::optional<double> as_number(const Json& json) {
    if (json.kind_case() == Json::kNumberValue) return json.number_value();
    const std::string& text = json.string_value();
    if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
    if (text == "inf") return std::numeric_limits<double>::infinity();
    if (text == "-inf") return -std::numeric_limits<double>::infinity();
    return {};
}

double number(const Json& json) {
    const std::optional<double> number = as_number(json);
    if (!number) other_kind(json, "a number");
    return *number;
}

const std::string& text(const Json& json) {
    if (json.kind_case() != Json::kStringValue) other_kind(json, "a text");
    return json.string_value();
}

bool flag(const Json& json) {
    if (json.kind_case() != Json::kBoolValue) other_kind(json, "true or false");
    return json.bool_value();
}

bool is_array(const Json& json) { return find(json, "dtype") && find(json, "shape"); }

Json object(std::map<std::string, Json> fields) {
    Json json;
    auto& target = *json.mutable_struct_value()->mutable_fields();
    for (auto& [name, value] : fields) target[name] = std::move(value);
    return json;
}

}  // namespace conformance
