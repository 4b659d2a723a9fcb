#include "cases.hpp"

#include <algorithm>
#include <filesystem>

namespace conformance {

namespace {

Files sorted_cases() {
    Files cases = read_directory("cases");
    const auto server = [](const Json& content) {
        const Json* found = find(content, "server");
        return found ? in_short(*found) : "";
    };
    std::stable_sort(cases.begin(), cases.end(),
                     [&](const auto& one, const auto& other) { return server(one.second) < server(other.second); });
    return cases;
}

}  // namespace

Files read_directory(const std::string& directory) {
    const std::filesystem::path path = std::filesystem::path(STEPWELL_REPOSITORY) / "tests/conformance" / directory;
    Files files;
    if (!std::filesystem::is_directory(path)) return files;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
        if (entry.path().extension() != ".json") continue;
        files.emplace_back(directory + "/" + entry.path().filename().string(), read_file(entry.path().string()));
    }
    std::sort(files.begin(), files.end(), [](const auto& one, const auto& other) { return one.first < other.first; });
    return files;
}

const Files& all_cases() {
    static const Files cases = sorted_cases();
    return cases;
}

Stand& shared_stand() {
    static Stand stand(STEPWELL_REPOSITORY);
    return stand;
}

}  // namespace conformance
