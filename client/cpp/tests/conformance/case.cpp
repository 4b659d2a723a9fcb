#include "case.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "compare.hpp"
#include "settings.hpp"

namespace conformance {

using namespace stepwell;

namespace {

/// For what a step does and waits for itself.
constexpr std::chrono::seconds call_max{60};
constexpr std::chrono::milliseconds pause{20};

const Json nothing = object({});

/// What cases say and this client's types do not let a program say, and why. A step that does so is passed over; it has
/// to expect an error, which is the compiler's.
const std::map<std::string, std::string> refused_by_types = {
    {"ignore", "Nonfinite has three enumerators"},
};

std::string text_or(const Json& step, const char* name, const char* otherwise) {
    const Json* found = find(step, name);
    return found ? text(*found) : otherwise;
}

/// A call in a thread of its own.
std::future<Told> begin(std::function<Told()> call) { return std::async(std::launch::async, std::move(call)); }

Told told_nothing(const Result<void>& result) {
    if (!result.ok()) return result.error();
    return nothing;
}

}  // namespace

void carry_out(const std::string& file, const Json& content, Stand& stand, int seconds_max) {
    try {
        Case(content, stand, seconds_max).carry_out();
    } catch (const CaseFailed& failed) {
        throw CaseFailed(file + ": " + failed.what());
    }
}

Case::Case(const Json& content, Stand& stand, int seconds_max)
    : steps_(at(content, "steps")), stand_(stand), wait_max_(seconds_max), suffix_("-") {
    for (const char byte : random_bytes(8)) suffix_ += "0123456789abcdef"[byte & 15];
    const Json* server = find(content, "server");
    const Json* arguments = server ? find(*server, "arguments") : nullptr;
    const Json* data = server ? find(*server, "data") : nullptr;
    const Json start = object({{"do", json("start")},
                               {"arguments", arguments ? *arguments : list_of(std::vector<int>(), json<int>)},
                               {"data", data ? *data : json(true)}});
    address_ = text(at(stand_.command(start), "address"));
}

Case::~Case() {
    for (auto& [label, call] : begun_) {
        if (call.result.valid() && call.result.wait_for(wait_max_) != std::future_status::ready) {
            // Then it ends with the connection.
            for (Client& client : opened_) client.close();
        }
    }
    begun_.clear();
    runs_.clear();
    orphans_.clear();
    for (Client& client : opened_) client.close();
}

void Case::carry_out() {
    int number = 0;
    for (const Json& step : elements(steps_)) {
        ++number;
        try {
            carry_out(step);
        } catch (const CaseFailed& failed) {
            throw CaseFailed("step " + std::to_string(number) + ": " + in_short(step) + "\n" + failed.what());
        } catch (const Unsayable& unsayable) {
            if (find(step, "error") && refused_by_types.count(unsayable.what)) continue;
            throw CaseFailed("step " + std::to_string(number) + ": this client has no '" + unsayable.what + "'");
        }
    }
}

void Case::carry_out(const Json& step) {
    if (find(step, "stand")) return do_with_stand(step);
    if (find(step, "until")) return repeat(step);
    if (const Json* label = find(step, "end")) {
        const auto found = begun_.find(text(*label));
        if (found == begun_.end()) throw CaseFailed("nothing of this label was begun: the case is wrong");
        end(found->second, step, find(step, "expect"), wait_max_);
        begun_.erase(found);
        return;
    }
    // A call that hangs is waited for at the case's end.
    const std::string label = text_or(step, "begin", "");
    Call& call = begun_[label] = start(step);
    if (find(step, "begin")) return;
    end(call, step, find(step, "expect"), call_max);
    begun_.erase(label);
}

void Case::do_with_stand(const Json& step) {
    std::map<std::string, Json> command;
    for (const auto& [name, value] : fields(step)) {
        if (name == "stand") {
            command["do"] = *value;
        } else if (name != "expect") {
            command[name] = name == "run" ? json(text(*value) + suffix_) : *value;
        }
    }
    const Json answer = stand_.command(object(std::move(command)));
    if (const Json* expected = find(step, "expect")) compare(answer, *expected);
}

void Case::repeat(const Json& step) {
    const auto limit = std::chrono::steady_clock::now() + wait_max_;
    for (;; std::this_thread::sleep_for(pause)) {
        Call& call = begun_[""] = start(step);
        try {
            end(call, step, &at(step, "until"), call_max);
            begun_.erase("");
            return;
        } catch (const CaseFailed&) {
            if (std::chrono::steady_clock::now() > limit) throw;
        }
    }
}

void Case::end(Call& call, const Json& step, const Json* expected, std::chrono::seconds limit) {
    const Json* error = find(step, "error");
    if (call.result.wait_for(limit) != std::future_status::ready) {
        throw CaseFailed("got nothing in " + std::to_string(limit.count()) + " s");
    }
    const Told result = call.result.get();
    if (!result.ok()) {
        if (error) return check_error(result.error(), *error);
        throw CaseFailed("got the error " + result.error().reason_name + ": " + result.error().message + "\nexpected " +
                         (expected ? in_short(*expected) : "none"));
    }
    Json came = result.value();
    if (call.settle) call.settle(came);
    if (error) throw CaseFailed("got " + in_short(came) + "\nexpected the error " + in_short(*error));
    compare(came, expected ? *expected : nothing, Tolerance(step), call.names_among);
}

Case::Call Case::start(const Json& step) {
    const std::string label = text_or(step, "client", "a"), what = text_or(step, "do", "");
    if (what == "connect") {
        Arguments with(find(step, "with"));
        connect(label, with);
        return {begin([]() -> Told { return nothing; }), {}};
    }
    if (!clients_.count(label)) {
        Arguments defaults(nullptr);
        connect(label, defaults);
    }
    const Json* given = find(step, "with");
    return start_with_client(given ? *given : nothing, what, *clients_.at(label), {label, text_or(step, "run", "run")});
}

Case::Call Case::start_with_client(const Json& given, const std::string& what, Client& client, const Key& key) {
    if (what == "create" || what == "get") return start_making(given, what, client, key);
    if (what == "delete") {
        return {
            begin([&client, name = name_of_run(key.second, given)] { return told_nothing(client.delete_run(name)); }),
            {}};
    }
    const ClientOperation operation = find_client_operation(what);
    if (!operation) return start_with_run(given, what, key);
    Call call{begin([&client, &given, operation] {
                  Arguments with(&given);
                  Told result = operation(client, with);
                  with.end();
                  return result;
              }),
              {},
              what == "list"};
    if (what != "list_runs") return call;
    call.settle = [this](Json& came) {
        std::vector<std::string> names;
        for (const Json& each : elements(at(came, "names"))) {
            const std::string& name = text(each);
            if (name.size() < suffix_.size()) continue;
            const std::size_t end = name.size() - suffix_.size();
            if (name.substr(end) == suffix_) names.push_back(name.substr(0, end));
        }
        std::sort(names.begin(), names.end());
        came = object({{"names", list_of(names, json<std::string>)}});
    };
    return call;
}

Case::Call Case::start_making(const Json& given, const std::string& what, Client& client, const Key& key) {
    close(key);
    const auto made = std::make_shared<std::unique_ptr<Run>>();
    return {begin([made, &client, &given, create = what == "create", name = name_of_run(key.second, given)]() -> Told {
                Arguments with(&given);
                with.take("exact_name");
                Memory memory;
                const std::vector<Parameter> parameters = memory.parameters(with.take("parameters"));
                const Spec spec = spec_of(with);
                with.end();
                Result<Run> result = create ? client.create_run(name, parameters, spec) : client.get_run(name);
                if (!result.ok()) return result.error();
                *made = std::make_unique<Run>(std::move(result).value());
                return object({{"created", json((*made)->created())}, {"version", json((*made)->version())}});
            }),
            [this, made, key](Json&) { runs_[key] = std::move(*made); }};
}

Case::Call Case::start_with_run(const Json& given, const std::string& what, const Key& key) {
    const auto found = runs_.find(key);
    if (found == runs_.end()) throw CaseFailed("client " + key.first + " has no run " + key.second);
    if (what == "close") {
        close(key);
        return {begin([]() -> Told { return nothing; }), {}};
    }
    const RunOperation operation = find_run_operation(what);
    if (!operation) throw CaseFailed("there is no operation '" + what + "'");
    Json arguments = given;
    const Json* etag = find(given, "etag");
    if (etag && text(*etag) == "last") {
        (*arguments.mutable_struct_value()->mutable_fields())["etag"] = json(etags_[key]);
    }
    return {begin([&run = *found->second, operation, arguments = std::move(arguments)] {
                Arguments with(&arguments);
                Told result = operation(run, with);
                with.end();
                return result;
            }),
            [this, key](Json& came) {
                if (const Json* told = find(came, "etag")) etags_[key] = text(*told);
            }};
}

void Case::connect(const std::string& label, Arguments& with) {
    ConnectOptions options = connect_options(with);
    with.end();
    if (options.worker.empty()) options.worker = label;
    Result<Client> client = stepwell::connect(address_, std::move(options));
    if (!client.ok()) throw CaseFailed("cannot connect: " + client.error().message);
    clients_[label] = &opened_.emplace_back(std::move(client).value());
    for (auto at = runs_.begin(); at != runs_.end();) {
        const bool replaced = at->first.first == label;
        if (replaced) orphans_.push_back(std::move(*at->second));
        at = replaced ? runs_.erase(at) : std::next(at);
    }
}

void Case::close(const Key& key) {
    const auto found = runs_.find(key);
    if (found == runs_.end()) return;
    found->second->close();
    runs_.erase(found);
}

std::string Case::name_of_run(const std::string& label, const Json& with) const {
    const Json* exact = find(with, "exact_name");
    return exact && flag(*exact) ? label : label + suffix_;
}

}  // namespace conformance
