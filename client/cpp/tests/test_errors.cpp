// Reasons, and how errors become exceptions for those who want them.
#include <doctest/doctest.h>

#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <string>

#include "failures.hpp"
#include "settings.hpp"
#include "status.pb.h"

using namespace stepwell;

TEST_CASE("there is a reason for each of the contract's, with its number and name") {
    const auto* contract = v1::ErrorReason_descriptor();
    int known = 0;
    for (int index = 0; index < contract->value_count(); ++index) {
        const auto* value = contract->value(index);
        if (value->number() == 0) continue;
        CAPTURE(value->name());
        CHECK(std::string("ERROR_REASON_") + name_of(static_cast<ErrorReason>(value->number())) == value->name());
        ++known;
    }
#define STEPWELL_COUNT(enumerator, contract, type, number) +1
    CHECK(known == 0 STEPWELL_ERROR_REASONS(STEPWELL_COUNT));
#undef STEPWELL_COUNT
}

TEST_CASE("each reason is thrown as its own class") {
#define STEPWELL_CHECK(enumerator, contract, type, number) \
    CHECK_THROWS_AS(raise(Error(ErrorReason::enumerator, "said")), type);
    STEPWELL_ERROR_REASONS(STEPWELL_CHECK)
#undef STEPWELL_CHECK
    CHECK_THROWS_AS(raise(Error()), StepwellError);
    try {
        unwrap(Result<int>(Error(ErrorReason::run_rewound, "back", {{"acknowledged_version", "7"}, {"version", "3"}})));
        FAIL("nothing was thrown");
    } catch (const RunRewound& rewound) {
        CHECK(std::string(rewound.what()) == "back");
        CHECK(rewound.error().acknowledged_version() == 7);
        CHECK(rewound.error().version() == 3);
        CHECK(rewound.error().reason_name == "RUN_REWOUND");
    }
    CHECK(unwrap(Result<int>(5)) == 5);
    unwrap(Result<void>());
}

TEST_CASE("a status with ErrorInfo of Stepwell's is typed, any other is not") {
    client::ErrorInfo info;
    info.set_reason("UNKNOWN_RUN");
    info.set_domain("stepwell");
    (*info.mutable_metadata())["run"] = "mnist";
    client::Status rich;
    rich.set_message("no run");
    auto& packed = *rich.add_details();
    packed.set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
    packed.set_value(info.SerializeAsString());
    const auto broken = [&rich] {
        return Break::of(grpc::Status(grpc::StatusCode::NOT_FOUND, "text", rich.SerializeAsString()));
    };
    REQUIRE(broken().error);
    CHECK(broken().error->reason == ErrorReason::unknown_run);
    CHECK(broken().error->message == "no run");
    CHECK(broken().error->details.at("run") == "mnist");
    CHECK_FALSE(broken().passing());

    info.set_reason("A_REASON_OF_TOMORROW");
    packed.set_value(info.SerializeAsString());
    CHECK(broken().as_error().reason == ErrorReason::unknown);
    CHECK(broken().as_error().reason_name == "A_REASON_OF_TOMORROW");

    info.set_domain("somebody else's");
    packed.set_value(info.SerializeAsString());
    CHECK_FALSE(broken().error);
    CHECK(broken().as_error().reason == ErrorReason::internal);
    CHECK_FALSE(Break::of(grpc::Status(grpc::StatusCode::NOT_FOUND, "text", "garbage")).error);
}

TEST_CASE("which ends of a call pass") {
    const auto of = [](grpc::StatusCode code, const char* text) { return Break::of(grpc::Status(code, text)); };
    CHECK(Break::silence().passing());
    CHECK(of(grpc::StatusCode::UNAVAILABLE, "").passing());
    CHECK(of(grpc::StatusCode::INTERNAL, "Received RST_STREAM with error code 2").passing());
    CHECK_FALSE(of(grpc::StatusCode::INTERNAL, "").passing());
    CHECK(of(grpc::StatusCode::UNAVAILABLE, "failed to connect to all addresses").never_executed());
    CHECK_FALSE(of(grpc::StatusCode::UNAVAILABLE, "Socket closed").never_executed());
    CHECK(of(grpc::StatusCode::UNIMPLEMENTED, "").as_error().reason == ErrorReason::contract_mismatch);
}

TEST_CASE("what connect is given is checked") {
    const auto reason = [](const std::string& address, const ConnectOptions& options = {}) {
        const Result<Client> client = connect(address, options);
        return client.ok() ? ErrorReason::unknown : client.error().reason;
    };
    unsetenv("STEPWELL_ADDRESS");
    CHECK(reason("") == ErrorReason::invalid_value);
    CHECK(reason("localhost") == ErrorReason::invalid_value);
    CHECK(reason("localhost:x") == ErrorReason::invalid_value);
    CHECK(reason("localhost:1") == ErrorReason::unknown);
    CHECK(reason("unix:/a/path") == ErrorReason::unknown);
    ConnectOptions options;
    options.silence_seconds = 0;
    CHECK(reason("localhost:1", options) == ErrorReason::invalid_value);
    options = {};
    options.worker = "a worker";
    CHECK(reason("localhost:1", options) == ErrorReason::invalid_name);
    options.worker = default_worker_name();
    CHECK(reason("localhost:1", options) == ErrorReason::unknown);
}
