// The samples and the programs in README.md, here and at the top, as a user starts them.
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
    CHECK(output == "version 500: w 1.000 -2.000 3.000 0.500, b 1.000\n");
    CHECK(execute({sample("two_workers"), server.address()}, output) == 0);
    CHECK(says(output, "had 0 to 500; version 300: 3.000 x -1.000\n"));
    CHECK(says(output, "had 500 to 1000; version 300: 3.000 x -1.000\n"));
    CHECK(says(output, "\nboth have the same parameters\n"));
    CHECK(execute({sample("train"), server.address()}, output) == 0);
    CHECK(says(output, "step 2000"));
    CHECK((says(output, "accuracy 0.99") || says(output, "accuracy 1.000")));
}

TEST_CASE("resume, with a restart between") {
    const testing::Directory directory;
    testing::Server server({"--data-dir", directory.path()});
    std::string output;
    CHECK(execute({sample("resume"), server.address(), "50"}, output) == 0);
    CHECK(output.rfind("a new run\nversion 50: x 4.", 0) == 0);
    CHECK(server.stop());
    server.start();
    CHECK(execute({sample("resume"), server.address()}, output) == 0);
    CHECK(output.rfind("goes on at version 50\nversion 1000: x ", 0) == 0);
}

TEST_CASE("a table") {
    std::string output;
    CHECK(execute({sample("table"), testing::shared_server().address()}, output) == 0);
    CAPTURE(output);
    CHECK(says(output, "version 200: "));
    CHECK(says(output, " rows; a user who likes 0.7 scores 0."));
}

TEST_CASE("the programs in the pages") {
    testing::Server server;
    const std::string pages = STEPWELL_PAGES_DIRECTORY, address = "STEPWELL_ADDRESS=" + server.address();
    std::string output;
    CHECK(execute({"env", address, pages + "/page_0"}, output) == 0);
    CAPTURE(output);
    CHECK(says(output, "w 3.000 -1.000"));
    // Adam's first step is the learning rate, against the gradient's sign.
    CHECK(execute({"env", address, pages + "/page_1"}, output) == 0);
    CHECK(says(output, "version 1  w0 -0.05"));
}

TEST_CASE("a sample without a server says so") {
    std::string output;
    CHECK(execute({sample("quickstart"), "nowhere"}, output) == 1);
}
