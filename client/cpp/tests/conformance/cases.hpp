/// What is in tests/conformance, and the stand that all tests share.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "json.hpp"
#include "stand.hpp"

namespace conformance {

/// File and content.
using Files = std::vector<std::pair<std::string, Json>>;

/// The JSON files of a directory below tests/conformance, by name; none where it is not there.
Files read_directory(const std::string& directory);
/// All cases; those with the same server one after another, for the stand keeps it then.
const Files& all_cases();
Stand& shared_stand();

}  // namespace conformance
