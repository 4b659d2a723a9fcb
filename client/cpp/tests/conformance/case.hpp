/// One case of tests/conformance/cases while it is carried out with this client.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "json.hpp"
#include "operations.hpp"
#include "stand.hpp"

namespace conformance {

/// Carry it out; throws CaseFailed at the first step that fails, with the file and the step's number. seconds_max: how
/// long it waits for what was begun, and for `until`.
void carry_out(const std::string& file, const Json& content, Stand& stand, int seconds_max = 60);

class Case {
public:
    Case(const Json& content, Stand& stand, int seconds_max);
    /// Waits for what was begun, and closes all clients.
    ~Case();
    Case(const Case&) = delete;
    Case& operator=(const Case&) = delete;

    void carry_out();

private:
    /// A client and the name of a run in the case.
    using Key = std::pair<std::string, std::string>;

    /// A call that was started.
    struct Call {
        std::future<Told> result;
        /// What of it is kept or changed before it is compared.
        std::function<void(Json&)> settle;
        bool names_among = false;
    };

    void carry_out(const Json& step);
    void do_with_stand(const Json& step);
    void repeat(const Json& step);
    /// Wait for a call, and compare.
    void end(Call& call, const Json& step, const Json* expected, std::chrono::seconds limit);

    Call start(const Json& step);
    // given: the step's `with`.
    Call start_with_client(const Json& given, const std::string& what, stepwell::Client& client, const Key& key);
    Call start_with_run(const Json& given, const std::string& what, const Key& key);
    Call start_making(const Json& given, const std::string& what, stepwell::Client& client, const Key& key);
    void connect(const std::string& label, Arguments& with);
    void close(const Key& key);
    /// The run's name on the server.
    std::string name_of_run(const std::string& label, const Json& with) const;

    const Json& steps_;
    Stand& stand_;
    std::chrono::seconds wait_max_;
    std::string suffix_, address_;
    /// All clients and runs of the case stay open until its end, those that others have replaced too.
    std::deque<stepwell::Client> opened_;
    std::deque<stepwell::Run> orphans_;
    std::map<std::string, stepwell::Client*> clients_;
    std::map<Key, std::unique_ptr<stepwell::Run>> runs_;
    std::map<Key, std::string> etags_;
    std::map<std::string, Call> begun_;
};

}  // namespace conformance
