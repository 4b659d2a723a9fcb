// All of tests/conformance/cases, each a subcase by its file.
#include <doctest/doctest.h>

#include "case.hpp"
#include "cases.hpp"

TEST_CASE("cases") {
    REQUIRE(!conformance::all_cases().empty());
    for (const auto& [file, content] : conformance::all_cases()) {
        SUBCASE(file.c_str()) { CHECK_NOTHROW(conformance::carry_out(file, content, conformance::shared_stand())); }
    }
}
