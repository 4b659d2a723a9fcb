/// Values, schedules and named parts, as plain data: what a spec is made of. Names and arguments are the catalogue's.
#pragma once

#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace stepwell {

/// Absent on purpose: switches off what an argument controls.
struct None {};
inline constexpr None none{};

inline bool operator==(None, None) { return true; }

/// A number, a flag, a text, a list of numbers, or none.
class Value {
public:
    using Kind = std::variant<None, double, bool, std::string, std::vector<double>>;

    Value() = default;
    Value(None) {}
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    Value(T value) {
        if constexpr (std::is_same_v<T, bool>) {
            kind_ = value;
        } else {
            kind_ = static_cast<double>(value);
        }
    }
    Value(const char* text) : kind_(std::string(text)) {}
    Value(std::string text) : kind_(std::move(text)) {}
    Value(std::vector<double> numbers) : kind_(std::move(numbers)) {}

    const Kind& kind() const { return kind_; }
    bool is_none() const { return std::holds_alternative<None>(kind_); }
    /// The number; null for another kind. Likewise below.
    const double* number() const { return std::get_if<double>(&kind_); }
    const bool* flag() const { return std::get_if<bool>(&kind_); }
    const std::string* text() const { return std::get_if<std::string>(&kind_); }
    const std::vector<double>* numbers() const { return std::get_if<std::vector<double>>(&kind_); }

    friend bool operator==(const Value& left, const Value& right) { return left.kind_ == right.kind_; }
    friend bool operator!=(const Value& left, const Value& right) { return !(left == right); }

private:
    Kind kind_;
};

using Values = std::map<std::string, Value>;

/// What a schedule counts: the run's version, its samples, or samples over samples_per_epoch.
enum class Clock : int { unset = 0, updates = 1, samples = 2, epochs = 3 };

/// A function of a run's clock that gives one number: Schedule{"cosine", {{"t_max", 1000}}}.
struct Schedule {
    Schedule() = default;
    Schedule(std::string name, Values arguments = {}, std::vector<Schedule> schedules = {}, Clock clock = Clock::unset)
        : name(std::move(name)), arguments(std::move(arguments)), schedules(std::move(schedules)), clock(clock) {}

    std::string name;
    Values arguments;
    /// Children, for those that are made of others.
    std::vector<Schedule> schedules;
    /// At the root only; unset means updates.
    Clock clock = Clock::unset;
};

using Schedules = std::map<std::string, Schedule>;

/// A transform, wrapper, encoding or policy: its name and its arguments. Part{"sync", {{"quorum", 3}}}, or just "sync".
struct Part {
    Part() = default;
    Part(const char* name) : name(name) {}
    Part(std::string name, Values arguments = {}) : name(std::move(name)), arguments(std::move(arguments)) {}

    std::string name;
    Values arguments;
};

}  // namespace stepwell
