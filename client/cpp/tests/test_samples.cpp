// The samples, as a user starts them.
#include <doctest/doctest.h>

#include "server.hpp"

using testing::execute;

namespace {

std::string sample(const std::string& name) { return std::string(STEPWELL_SAMPLES_DIRECTORY) + "/" + name; }

bool says(const std::string& output, const std::string& words) { return output.find(words) != std::string::npos; }

}  // namespace

TEST_CASE("quickstart, two workers, training") {
    testing::Server server;
    std::string output;
    CHECK(execute({sample("quickstart"), server.address()}, output) == 0);
    CAPTURE(output);
    CHECK(says(output, "version 500  w 1.000 -2.000 3.000 0.500  b 1.000"));
    CHECK(execute({sample("two_workers"), server.address()}, output) == 0);
    CHECK(says(output, "worker-0: samples 0 to 32  version 200  w 3.000  b -1.000"));
    CHECK(says(output, "worker-1: samples 32 to 64  version 200  w 3.000  b -1.000"));
    CHECK(execute({sample("train"), server.address()}, output) == 0);
    CHECK(says(output, "step 2000"));
    CHECK((says(output, "accuracy 0.99") || says(output, "accuracy 1.000")));
}

TEST_CASE("resume, with a restart between") {
    const testing::Directory directory;
    testing::Server server({"--data-dir", directory.path()});
    std::string output;
    CHECK(execute({sample("resume"), server.address()}, output) == 0);
    CHECK(says(output, "created at version 0"));
    CHECK(says(output, "version 50"));
    CHECK(server.stop());
    server.start();
    CHECK(execute({sample("resume"), server.address()}, output) == 0);
    CHECK(says(output, "resumed at version 50"));
    CHECK(says(output, "version 100"));
}

TEST_CASE("a table") {
    std::string output;
    CHECK(execute({sample("table"), testing::shared_server().address()}, output) == 0);
    CAPTURE(output);
    CHECK(says(output, "version 400"));
    CHECK(says(output, "rows 100 of 1000 users"));
}

TEST_CASE("a sample without a server says so") {
    std::string output;
    CHECK(execute({sample("quickstart"), "nowhere"}, output) == 1);
}
