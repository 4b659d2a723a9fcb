// That the runner fails where it must: cases with one expectation changed, and comparisons by hand.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <set>

#include "arrays.hpp"
#include "case.hpp"
#include "cases.hpp"
#include "compare.hpp"

using namespace conformance;

namespace {

/// Changes what a step expects, where it has what can be changed; whether it did.
using Alter = std::function<bool(Json& step)>;

Json* field(Json& object, const std::string& name) { return const_cast<Json*>(find(object, name)); }

void set(Json& object, const std::string& name, Json value) {
    (*object.mutable_struct_value()->mutable_fields())[name] = std::move(value);
}

/// Changes the first value within `expect`, by names, that `change` changes.
Alter within(std::function<bool(const std::string& name, Json& value)> change) {
    return [change = std::move(change)](Json& step) {
        const std::function<bool(const std::string&, Json&)> visit = [&](const std::string& name, Json& value) {
            if (change(name, value)) return true;
            if (!is_object(value) || is_array(value)) return false;
            for (const auto& [inner, found] : fields(value)) {
                if (visit(inner, *field(value, inner))) return true;
            }
            return false;
        };
        Json* expected = field(step, "expect");
        return expected && visit("", *expected);
    };
}

/// Changes an array that is expected.
Alter in_array(std::function<bool(Json& array)> change) {
    return within(
        [change = std::move(change)](const std::string&, Json& value) { return is_array(value) && change(value); });
}

/// Changes the expected error.
Alter in_error(std::function<bool(Json& error)> change) {
    return [change = std::move(change)](Json& step) {
        Json* error = field(step, "error");
        return error && change(*error);
    };
}

/// Where a step is of this kind.
Alter where(const char* kind, Alter alter) {
    return [kind, alter = std::move(alter)](Json& step) { return find(step, kind) && alter(step); };
}

bool add_one(Json& json) {
    if (json.kind_case() != Json::kNumberValue) return false;
    json.set_number_value(json.number_value() + 1);
    return true;
}

bool any_number(const std::string&, Json& value) { return add_one(value); }

bool is_whole(const std::string& name) { return name == "parameters" || name == "rows" || name == "slots"; }

const std::map<std::string, Alter> changes = {
    {"an element", in_array([](Json& array) {
         Json* values = field(array, "values");
         return values && !elements(*values).empty() && add_one(*values->mutable_list_value()->mutable_values(0));
     })},
    {"all elements", in_array([](Json& array) {
         Json* fill = field(array, "fill");
         return fill && add_one(*fill);
     })},
    {"the type of an array", in_array([](Json& array) {
         set(array, "dtype", json(text(at(array, "dtype")) == "float64" ? "float32" : "float64"));
         return true;
     })},
    {"the shape of an array", in_array([](Json& array) {
         *field(array, "shape")->mutable_list_value()->add_values() = json(1);
         return true;
     })},
    {"the version", within([](const std::string& name, Json& value) { return name == "version" && add_one(value); })},
    {"what the call returns",
     within([](const std::string& name, Json& value) { return name == "returned" && add_one(value); })},
    {"the outcome", within([](const std::string& name, Json& value) {
         if (name != "outcome") return false;
         value = json(text(value) == "committed" ? "folded" : "committed");
         return true;
     })},
    {"a flag", within([](const std::string&, Json& value) {
         if (value.kind_case() != Json::kBoolValue) return false;
         value.set_bool_value(!value.bool_value());
         return true;
     })},
    {"none where there is a number", within([](const std::string&, Json& value) {
         if (value.kind_case() != Json::kNumberValue) return false;
         value = json(nullptr);
         return true;
     })},
    {"a number where there is none", within([](const std::string&, Json& value) {
         if (!is_null(value)) return false;
         value = json(0);
         return true;
     })},
    {"a text where there is a number", within([](const std::string&, Json& value) {
         if (value.kind_case() != Json::kNumberValue) return false;
         value = json("1");
         return true;
     })},
    {"a name that did not come", within([](const std::string& name, Json& value) {
         if (!is_object(value) || is_array(value) || name.empty()) return false;
         set(value, "nothing of this name", json(0));
         return true;
     })},
    {"a name that was not expected", within([](const std::string& name, Json& value) {
         if (!is_whole(name) || !is_object(value) || fields(value).empty()) return false;
         value.mutable_struct_value()->mutable_fields()->erase(fields(value).begin()->first);
         return true;
     })},
    {"a list with one more", within([](const std::string&, Json& value) {
         if (value.kind_case() != Json::kListValue) return false;
         *value.mutable_list_value()->add_values() = json("nothing of this name");
         return true;
     })},
    {"a list with one less", within([](const std::string& name, Json& value) {
         if (value.kind_case() != Json::kListValue || elements(value).empty()) return false;
         if (name != "checkpoints" && name != "values" && name != "workers") return false;
         value.mutable_list_value()->mutable_values()->RemoveLast();
         return true;
     })},
    {"the answer of the stand", where("stand", within(any_number))},
    {"what was begun", where("end", within(any_number))},
    {"the reason of an error", in_error([](Json& error) {
         set(error, "reason", json(text(at(error, "reason")) == "INTERNAL" ? "INVALID_NAME" : "INTERNAL"));
         return true;
     })},
    {"a piece of a message", in_error([](Json& error) {
         Json* message = field(error, "message");
         if (message) *message->mutable_list_value()->add_values() = json("no such piece");
         return message != nullptr;
     })},
    {"a detail of an error", in_error([](Json& error) {
         Json* details = field(error, "details");
         if (details) set(*details, fields(*details).begin()->first, json("no such text"));
         return details != nullptr;
     })},
    {"no error", [](Json& step) { return step.mutable_struct_value()->mutable_fields()->erase("error") > 0; }},
    {"an error",
     [](Json& step) {
         if (!step.mutable_struct_value()->mutable_fields()->erase("expect")) return false;
         if (find(step, "stand")) return false;
         set(step, "error", object({{"reason", json("INTERNAL")}}));
         return true;
     }},
};

/// A case with one step changed.
struct Changed {
    std::string file;
    Json content;
    int step;
};

/// A case that can be changed so, rather one that was not used yet, in as early a step as there is.
std::optional<Changed> change_one(const Alter& alter, std::set<std::string>& used) {
    std::optional<Changed> best;
    const auto rank = [&used](const std::string& file, int step) { return std::make_pair(used.count(file), step); };
    for (const auto& [file, content] : all_cases()) {
        if (find(content, "server")) continue;  // another one takes long to start
        Json changed = content;
        auto& steps = *field(changed, "steps")->mutable_list_value()->mutable_values();
        for (int index = 0; index < steps.size(); ++index) {
            if (best && rank(file, index + 1) >= rank(best->file, best->step)) break;
            Json step = steps[index];
            if (!alter(step)) continue;
            steps[index] = std::move(step);
            best = Changed{file, changed, index + 1};
            break;
        }
    }
    if (best) used.insert(best->file);
    return best;
}

/// How a case fails; empty where it does not. seconds_max: for what a step waits for; what is to come comes within it.
std::string failure_of(const std::string& file, const Json& content, int seconds_max = 60) {
    try {
        carry_out(file, content, shared_stand(), seconds_max);
    } catch (const CaseFailed& failed) {
        return failed.what();
    }
    return "";
}

/// How steps fail, as JSON.
std::string failure_of(const std::vector<const char*>& steps, int seconds_max = 60) {
    return failure_of("file", object({{"steps", list_of(steps, parse)}}), seconds_max);
}

bool says(const std::string& message, const std::string& piece) { return message.find(piece) != std::string::npos; }

/// What a comparison objects to; empty where it holds.
std::string objection(const char* got, const char* expected, const Tolerance& tolerance = {}, bool among = false) {
    try {
        compare(parse(got), parse(expected), tolerance, among);
    } catch (const CaseFailed& failed) {
        return failed.what();
    }
    return "";
}

bool same(const char* got, const char* expected) { return objection(got, expected).empty(); }

}  // namespace

TEST_CASE("a changed expectation fails") {
    std::set<std::string> used;
    for (const auto& [what, alter] : changes) {
        CAPTURE(what);
        const std::optional<Changed> changed = change_one(alter, used);
        REQUIRE(changed);
        const std::string failure = failure_of(changed->file, changed->content);
        CAPTURE(failure);
        CHECK(failure.rfind(changed->file + ": step " + std::to_string(changed->step) + ":", 0) == 0);
        CHECK(says(failure, "\ngot "));
        CHECK(says(failure, "\nexpected "));
    }
}

TEST_CASE("a step that cannot be carried out fails") {
    CHECK(failure_of({R"({"do": "ping"})"}).empty());
    CHECK(says(failure_of({R"({"do": "ping", "with": {"loudly": true}})"}), "'loudly'"));
    CHECK(says(failure_of({R"({"do": "pong"})"}), "no run"));
    CHECK(says(failure_of({R"({"do": "pull"})"}), "no run"));
    CHECK(says(failure_of({R"({"end": "never begun"})"}), "begun"));
    CHECK(says(failure_of({R"({"stand": "sit"})"}), "sit"));
    CHECK(failure_of({R"({"do": "get", "error": {"reason": "UNKNOWN_RUN"}})"}).empty());
    // Only what the types refuse is passed over, and only where an error is expected.
    CHECK(says(failure_of({R"({"do": "create", "with": {"nonfinite": "ignore"}})"}), "'ignore'"));
    CHECK(says(failure_of({R"({"do": "create", "with": {"nonfinite": "other"}, "error": {"reason": "INTERNAL"}})"}),
               "'other'"));
}

TEST_CASE("what does not come in time fails") {
    const char* create = R"({"do": "create", "client": "%", "with": {"optimizer": "sgd", "parameters":
                             {"w": {"dtype": "float32", "shape": [1], "values": [1]}}}})";
    const auto of = [create](const char* client) {
        std::string step = create;
        return step.replace(step.find('%'), 1, client);
    };
    const std::string first = of("a"), second = of("b");
    CHECK(says(failure_of({first.c_str(), R"({"do": "refresh", "until": {"version": 1}})"}, 1),
               "step 2: {\"do\": \"refresh\", \"until\": {\"version\": 1}}\nat version:\ngot 0\nexpected 1"));
    // Nobody else comes to the barrier.
    const char *begin = R"({"do": "barrier", "begin": "wait"})", *end = R"({"end": "wait"})";
    CHECK(says(failure_of({first.c_str(), second.c_str(), begin, end}, 1),
               "step 4: {\"end\": \"wait\"}\ngot nothing in 1 s"));
}

TEST_CASE("numbers are compared within the tolerance") {
    CHECK(parse("0.1").number_value() == 0.1);
    CHECK(parse("5e-324").number_value() == 5e-324);
    CHECK(std::signbit(parse("-0.0").number_value()));
    CHECK(same("1", "1"));
    CHECK_FALSE(same("1.0000000000000002", "1"));
    CHECK_FALSE(same("1", "true"));
    CHECK_FALSE(same("1", "\"1\""));
    Tolerance tolerance(parse(R"({"tolerance": {"relative": 0.25}})"));
    CHECK(objection("5", "4", tolerance).empty());
    CHECK_FALSE(objection("5.01", "4", tolerance).empty());
    tolerance = Tolerance(parse(R"({"tolerance": {"absolute": 0.5}})"));
    CHECK(objection("4.5", "4", tolerance).empty());
    CHECK_FALSE(objection("4.51", "4", tolerance).empty());
    CHECK_FALSE(objection("1e300", "\"inf\"", tolerance).empty());
    CHECK_FALSE(objection("4", "\"nan\"", tolerance).empty());
    Json nan;
    nan.set_number_value(number(json("nan")));
    CHECK_NOTHROW(compare(nan, json("nan")));
    CHECK_THROWS_AS(compare(nan, json(1)), CaseFailed);
    CHECK_THROWS_AS(compare(json(number(json("-inf"))), json("inf")), CaseFailed);
}

TEST_CASE("objects, lists and arrays") {
    CHECK(same(R"({"a": 1, "b": 2})", R"({"a": 1})"));
    CHECK_FALSE(same(R"({"a": 1})", R"({"a": 1, "b": 2})"));
    CHECK_FALSE(same(R"({"a": 1})", R"({"a": null})"));
    CHECK(same(R"({"a": null})", R"({"a": null})"));
    CHECK_FALSE(same(R"({"rows": {"a": 1, "b": 2}})", R"({"rows": {"a": 1}})"));
    CHECK_FALSE(same(R"({"slots": {"w": {"a": 1, "b": 2}}})", R"({"slots": {"w": {"a": 1}}})"));
    CHECK_FALSE(same("[1, 2]", "[2, 1]"));
    CHECK_FALSE(same("[1, 2]", "[1]"));
    CHECK(objection(R"({"names": ["a", "b"]})", R"({"names": ["b"]})", {}, true).empty());
    CHECK_FALSE(objection(R"({"names": ["a", "b"]})", R"({"names": ["c"]})", {}, true).empty());
    CHECK_FALSE(same(R"({"names": ["a", "b"]})", R"({"names": ["b"]})"));
    const char* two = R"({"dtype": "float32", "shape": [2], "values": [0.5, 0.5]})";
    CHECK(same(two, two));
    CHECK(same(two, R"({"dtype": "float32", "shape": [2], "fill": 0.5})"));
    CHECK_FALSE(same(two, R"({"dtype": "float32", "shape": [2, 1], "fill": 0.5})"));
    CHECK_FALSE(same(two, R"({"dtype": "float64", "shape": [2], "fill": 0.5})"));
    CHECK_FALSE(same(two, R"({"dtype": "float32", "shape": [2], "values": [0.5, 0.25]})"));
    CHECK_FALSE(same("0.5", two));
    CHECK(objection(R"({"a": {"b": [1, 2]}})", R"({"a": {"b": [1, 3]}})") == "at a.b[1]:\ngot 2\nexpected 3");
}

TEST_CASE("numbers are rounded to the type, to nearest, half way to even") {
    using stepwell::DType;
    CHECK(round_to(DType::float32, 0.1) == 0.100000001490116119384765625);
    CHECK(round_to(DType::float64, 0.1) == 0.1);
    CHECK(round_to(DType::float16, 1 + 0x1p-11) == 1);
    CHECK(round_to(DType::float16, 1 + 0x3p-11) == 1 + 0x1p-9);
    CHECK(round_to(DType::float16, 0x1p-25) == 0);
    CHECK(round_to(DType::float16, -0x3p-25) == -0x1p-23);
    CHECK(round_to(DType::float16, 65519) == 65504);
    CHECK(number(json("-inf")) == round_to(DType::float16, -65520));
    CHECK(round_to(DType::bfloat16, 1 + 0x1p-8) == 1);
    // By way of a float32 it would be 1.
    CHECK(round_to(DType::bfloat16, 1 + 0x1p-8 + 0x1p-40) == 1 + 0x1p-7);
    const OwnedArray halves(parse(R"({"dtype": "float16", "shape": [2], "values": [1, -2]})"));
    CHECK(halves.bytes == std::vector<std::byte>{std::byte{0x00}, std::byte{0x3C}, std::byte{0x00}, std::byte{0xC0}});
    const OwnedArray brains(parse(R"({"dtype": "bfloat16", "shape": [], "values": ["inf"]})"));
    CHECK(brains.bytes == std::vector<std::byte>{std::byte{0x80}, std::byte{0x7F}});
    CHECK(stepwell::element_bytes(brains.dtype) == 2);
}
