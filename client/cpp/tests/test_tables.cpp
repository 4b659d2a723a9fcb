// Embedding tables: rows in updates and in answers, against a table kept by hand.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <stepwell/throwing.hpp>

#include "core.hpp"
#include "proxy.hpp"
#include "server.hpp"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

constexpr std::uint32_t width = 3;
const std::vector<double> w = {1, 2}, g = {1, 1};

TableSpec sgd_table(const std::string& name, DType dtype = DType::float64) {
    TableSpec table;
    table.name = name;
    table.width = width;
    table.dtype = dtype;
    table.optimizer = "sgd";
    table.hyperparameters = {{"lr", 1.0}};
    table.initializer = Part("constant", {{"value", 0.5}});
    return table;
}

Spec with_tables(const std::vector<TableSpec>& tables) {
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 0.5}};
    spec.tables = tables;
    return spec;
}

std::vector<double> row(const Arrays& arrays, const char* table, std::size_t place) {
    const RowValues* rows = arrays.find_rows(table);
    if (!rows) return {};
    const Span<double> span = rows->row<double>(place);
    return {span.begin(), span.end()};
}

}  // namespace

TEST_CASE("rows are created when they are touched, and trained beside parameters") {
    Client client = testing::connect(shared_server().address());
    Run run = unwrap(client.create_run(new_name("tables"), {{"w", {2}, w}},
                                       with_tables({sgd_table("users"), sgd_table("items", DType::float32)})));
    const std::vector<std::int64_t> ids = {7, -(std::int64_t{1} << 62), 7};
    const std::vector<double> gradients = {1, 2, 3, 4, 5, 6, 10, 20, 30};
    UpdateOptions options;
    options.rows = {{"users", ids, gradients}};
    options.select_rows = {{"users", ids}};
    const Arrays stepped = unwrap(run.step({{"w", g}}, options));
    CHECK(stepped.get<double>("w")[0] == 0.5);
    CHECK(row(stepped, "users", 0) == std::vector<double>{-10.5, -21.5, -32.5});  // both gradients of 7
    CHECK(row(stepped, "users", 1) == std::vector<double>{-3.5, -4.5, -5.5});
    CHECK(row(stepped, "users", 2) == row(stepped, "users", 0));
    CHECK(stepped.find_rows("items") == nullptr);

    CHECK(unwrap(run.push_rows({{"users", Span<const std::int64_t>(ids).subspan(0, 1), std::vector<double>(3, 1.0)},
                                {"items", ids, std::vector<Half>(9, Half(0.25F))}})) == 2);
    std::vector<double> mine(3);
    const Arrays rows = unwrap(
        run.pull_rows({{"users", Span<const std::int64_t>(ids).subspan(0, 1), MutableElements(mine)}, {"items", ids}}));
    CHECK(mine == std::vector<double>{-11.5, -22.5, -33.5});
    CHECK(rows.find_rows("items")->row<float>(2)[0] == 0.0F);  // 0.5 - 2 * 0.25
    CHECK(rows.find_rows("items")->row<float>(1)[0] == 0.25F);
    CHECK(rows.size() == 0);
    CHECK(unwrap(run.pull()).get<double>("w")[0] == 0.5);  // parameters stayed

    const RunDescription now = unwrap(run.refresh());
    REQUIRE(now.tables.size() == 2);
    CHECK(now.tables[0].name == "users");
    CHECK(now.tables[0].rows == 2);
    CHECK(now.tables[0].step == 2);
    CHECK(now.tables[0].hyperparameters.at("lr") == Value(1.0));
    CHECK(now.spec.tables.at(1).width == width);

    const std::vector<std::int64_t> unseen = {99};
    CHECK(row(unwrap(run.pull_rows({{"users", unseen}})), "users", 0) == std::vector<double>(3, 0.5));
    CHECK(unwrap(run.refresh()).tables[0].rows == 2);  // looking creates nothing
    CHECK(unwrap(run.push_rows({{"users", {}, std::vector<double>()}})) == 3);
}

TEST_CASE("more rows than a message has room for, with retries") {
    testing::Proxy proxy(shared_server().address(), 3, 30e6);
    Client client = testing::connect(proxy.address());
    TableSpec table = sgd_table("large");
    table.width = 16;
    Run run = unwrap(client.create_run(new_name("rows"), {{"w", {2}, w}}, with_tables({table})));
    constexpr std::size_t count = 60'000;
    std::vector<std::int64_t> ids(count);
    std::vector<double> gradients(count * 16);
    for (std::size_t place = 0; place < count; ++place) {
        ids[place] = static_cast<std::int64_t>(place) * 1'000'003;
        for (std::size_t element = 0; element < 16; ++element) gradients[place * 16 + element] = 0.5 + place;
    }
    for (int push = 0; push < 3; ++push) {
        CHECK(unwrap(run.push_rows({{"large", ids, gradients}})) == static_cast<std::uint64_t>(push) + 1);
    }
    const Arrays rows = unwrap(run.pull_rows({{"large", ids}}));
    const Span<double> got = rows.find_rows("large")->values.as<double>();
    REQUIRE(got.size() == count * 16);
    std::size_t wrong = 0;
    for (std::size_t place = 0; place < count; ++place) wrong += got[place * 16 + 15] != 0.5 - 3 * (0.5 + place);
    CHECK(wrong == 0);
    CHECK(unwrap(run.refresh()).tables[0].rows == count);
}

TEST_CASE("what is wrong with rows") {
    Client client = testing::connect(shared_server().address());
    TableSpec small = sgd_table("small");
    small.rows_max = 2;
    Run run = unwrap(client.create_run(new_name("bad-rows"), {{"w", {2}, w}}, with_tables({small})));
    const std::vector<std::int64_t> ids = {1, 2, 3};
    const std::vector<double> gradients(9), short_gradients(8);
    CHECK(run.push_rows({{"none", ids, gradients}}).error().reason == ErrorReason::unknown_table);
    CHECK(run.push_rows({{"small", ids, short_gradients}}).error().reason == ErrorReason::invalid_rows);
    CHECK(run.push_rows({}).error().reason == ErrorReason::invalid_rows);
    CHECK(run.push_rows({{"small", ids, gradients}, {"small", ids, gradients}}).error().reason ==
          ErrorReason::invalid_rows);
    CHECK(run.pull_rows({{"none", ids}}).error().reason == ErrorReason::unknown_table);
    const std::vector<std::int64_t> too_many(400'000);
    CHECK(run.pull_rows({{"small", too_many}}).error().reason == ErrorReason::limit_exceeded);
    CHECK(run.push_rows({{"small", ids, gradients}}).error().reason == ErrorReason::table_full);
    CHECK(run.push_rows({{"small", ids, std::vector<double>(9, std::nan(""))}}).error().reason ==
          ErrorReason::nonfinite_gradient);
    CHECK(unwrap(run.refresh()).tables[0].rows == 0);
    TableSpec table = sgd_table("t");
    table.optimizer = "lbfgs";
    CHECK(client.create_run(new_name("bad-table"), {{"w", {2}, w}}, with_tables({table})).error().reason ==
          ErrorReason::rows_not_supported);
}
