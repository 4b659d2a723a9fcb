#include "compare.hpp"

#include <algorithm>
#include <cmath>

#include "arrays.hpp"

namespace conformance {

namespace {

/// What may not have more fields than expected, nor what is in it.
bool is_whole(const std::string& name) { return name == "parameters" || name == "rows" || name == "slots"; }

class Comparison {
public:
    Comparison(const Tolerance& tolerance, bool names_among) : tolerance_(tolerance), names_among_(names_among) {}

    /// whole: neither may have more fields than the other.
    void compare(const Json& got, const Json& expected, const std::string& place, bool whole = false) const {
        if (is_array(expected)) {
            check(is_array(got) && same_array(got, expected), got, expected, place);
            return;
        }
        switch (expected.kind_case()) {
            case Json::kStructValue:
                compare_objects(got, expected, place, whole);
                break;
            case Json::kListValue:
                compare_lists(got, expected, place);
                break;
            case Json::kBoolValue:
                check(got.kind_case() == Json::kBoolValue && got.bool_value() == expected.bool_value(), got, expected,
                      place);
                break;
            case Json::kNumberValue:
            case Json::kStringValue:
                check(same_single(got, expected), got, expected, place);
                break;
            default:
                check(is_null(got), got, expected, place);
        }
    }

private:
    static void check(bool holds, const Json& got, const Json& expected, const std::string& place) {
        if (holds) return;
        throw CaseFailed("at " + (place.empty() ? "the answer" : place) + ":\ngot " + in_short(got) + "\nexpected " +
                         in_short(expected));
    }

    bool same_array(const Json& got, const Json& expected) const {
        if (text(at(got, "dtype")) != text(at(expected, "dtype")) || shape_of(got) != shape_of(expected)) return false;
        const std::vector<double> came = rounded(got), wanted = rounded(expected);
        return std::equal(came.begin(), came.end(), wanted.begin(), wanted.end(),
                          [this](double one, double other) { return tolerance_.close(one, other); });
    }

    bool same_single(const Json& got, const Json& expected) const {
        const std::optional<double> wanted = as_number(expected);
        if (wanted) return got.kind_case() == Json::kNumberValue && tolerance_.close(got.number_value(), *wanted);
        return got.kind_case() == Json::kStringValue && got.string_value() == expected.string_value();
    }

    void compare_objects(const Json& got, const Json& expected, const std::string& place, bool whole) const {
        const auto wanted = fields(expected);
        check(is_object(got) && (!whole || fields(got).size() == wanted.size()), got, expected, place);
        for (const auto& [name, value] : wanted) {
            const Json* found = find(got, name);
            check(found != nullptr, got, expected, place);
            compare(*found, *value, place.empty() ? name : place + "." + name, whole || is_whole(name));
        }
    }

    void compare_lists(const Json& got, const Json& expected, const std::string& place) const {
        check(got.kind_case() == Json::kListValue, got, expected, place);
        const auto &came = elements(got), &wanted = elements(expected);
        if (names_among_ && place == "names") {
            for (const Json& name : wanted) {
                const bool there =
                    std::any_of(came.begin(), came.end(), [&](const Json& each) { return same_single(each, name); });
                check(there, got, name, place);
            }
            return;
        }
        check(came.size() == wanted.size(), got, expected, place);
        for (int index = 0; index < wanted.size(); ++index) {
            compare(came[index], wanted[index], place + "[" + std::to_string(index) + "]");
        }
    }

    const Tolerance& tolerance_;
    bool names_among_;
};

}  // namespace

Tolerance::Tolerance(const Json& step) {
    const Json* given = find(step, "tolerance");
    if (!given) return;
    if (const Json* part = find(*given, "relative")) relative = number(*part);
    if (const Json* part = find(*given, "absolute")) absolute = number(*part);
}

bool Tolerance::close(double got, double expected) const {
    if (std::isnan(expected)) return std::isnan(got);
    if (std::isinf(expected) || std::isinf(got)) return got == expected;
    return std::fabs(got - expected) <= absolute + relative * std::fabs(expected);
}

void compare(const Json& got, const Json& expected, const Tolerance& tolerance, bool names_among) {
    Comparison(tolerance, names_among).compare(got, expected, "");
}

void check_error(const stepwell::Error& got, const Json& expected) {
    bool holds = stepwell::name_of(got.reason) == text(at(expected, "reason"));
    if (const Json* pieces = find(expected, "message")) {
        for (const Json& piece : elements(*pieces)) {
            holds = holds && got.message.find(text(piece)) != std::string::npos;
        }
    }
    if (const Json* details = find(expected, "details")) {
        for (const auto& [name, value] : fields(*details)) {
            const auto found = got.details.find(name);
            holds = holds && found != got.details.end() && found->second == text(*value);
        }
    }
    if (holds) return;
    const Json details = object_of(got.details, json<std::string>);
    throw CaseFailed("got the error " + got.reason_name + ": " + got.message + " " + in_short(details) +
                     "\nexpected the error " + in_short(expected));
}

}  // namespace conformance
