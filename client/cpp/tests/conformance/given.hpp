/// What cases give, as the client takes it.
#pragma once

#include <deque>
#include <set>
#include <stepwell/stepwell.hpp>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "json.hpp"

namespace conformance {

/// Something of a case that this client's types cannot hold: no program that does it compiles.
struct Unsayable {
    std::string what;
};

/// The fields of an object, each of which has to be taken: nothing that a case says is passed over.
class Arguments {
public:
    /// Null for none.
    explicit Arguments(const Json* object);

    /// Null where it is missing, or none.
    const Json* take(const std::string& name);
    std::string take_text(const std::string& name);
    std::optional<double> take_number(const std::string& name);
    bool take_flag(const std::string& name);
    /// Arguments of hyperparameters and parts by name.
    stepwell::Values take_values(const std::string& name);
    std::optional<stepwell::Part> take_part(const std::string& name);
    stepwell::Schedules take_schedules(const std::string& name);
    std::vector<std::string> take_texts(const std::string& name);
    std::map<std::string, double> take_numbers(const std::string& name);
    /// All that was not taken yet.
    stepwell::Values take_rest();
    /// Throws CaseFailed where something was not taken.
    void end() const;

private:
    std::map<std::string, const Json*> fields_;
    std::set<std::string> taken_;
};

/// Owns what the client is given views of.
class Memory {
public:
    stepwell::Gradients gradients(const Json* arrays);
    std::vector<stepwell::RowGradients> row_gradients(const Json* rows);
    std::vector<stepwell::RowSelection> row_selections(const Json* rows);
    std::vector<stepwell::Parameter> parameters(const Json* arrays);

private:
    const OwnedArray& keep(const Json& array) { return arrays_.emplace_back(array); }
    stepwell::Span<const std::int64_t> ids(const Json& list);

    std::deque<OwnedArray> arrays_;
    std::deque<std::vector<std::int64_t>> ids_;
};

stepwell::Schedule schedule_of(const Json& json);
stepwell::ConnectOptions connect_options(Arguments& with);
stepwell::Spec spec_of(Arguments& with);
/// What an update has beside its gradients.
stepwell::UpdateOptions update_options(Arguments& with, Memory& memory);
stepwell::Change change_of(Arguments& with);
stepwell::State state_of(const Json& json);

}  // namespace conformance
