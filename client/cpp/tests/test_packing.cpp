// How gradients are cut into messages, by hand.
#include <doctest/doctest.h>

#include "layouts.hpp"
#include "packing.hpp"

using namespace stepwell;
using testing::elements_of;
using testing::make_layout;
using testing::reason_of;

namespace {

using Messages = std::vector<std::vector<Piece>>;

Messages all_of(Packer packer) {
    Messages messages;
    std::vector<Piece> message;
    while (packer.next(message)) messages.push_back(message);
    return messages;
}

const Layout two_groups =
    make_layout({DType::float32, DType::float64}, {{"a", {2}, 0}, {"x", {}, 1}, {"b", {3}, 0}, {"none", {0, 4}, 0}});
const std::vector<float> a = {1, 2}, b = {3, 4, 5}, none_at_all;
const std::vector<double> x = {6};

ErrorReason refusal(const Gradients& gradients, const UpdateOptions& options = {}) {
    return reason_of([&] { Update(two_groups, gradients, options, "run 'r': push"); });
}

}  // namespace

TEST_CASE("neighbours share a range, groups do not") {
    const Update update(two_groups, {{"b", b}, {"x", x}, {"none", none_at_all}, {"a", a}}, {}, "push");
    const Messages messages = all_of(update.packers(range_bytes)[0]);
    REQUIRE(messages.size() == 1);
    REQUIRE(messages[0].size() == 2);
    CHECK(messages[0][0].packed_offset_bytes == 0);
    CHECK(elements_of<float>(messages[0][0]) == std::vector<float>{1, 2, 3, 4, 5});
    CHECK(messages[0][1].group == 1);
    CHECK(elements_of<double>(messages[0][1]) == x);
    v1::Range range;
    messages[0][0].write(range);
    CHECK(range.data().size() == 20);
    CHECK(range.dtype() == v1::D_TYPE_UNSPECIFIED);
}

TEST_CASE("a parameter without a gradient leaves a gap") {
    const Layout layout = make_layout({DType::float32}, {{"a", {2}, 0}, {"b", {1}, 0}, {"c", {2}, 0}});
    const std::vector<float> c = {7, 8};
    const Update update(layout, {{"a", a}, {"b", no_gradient}, {"c", c}}, {}, "push");
    CHECK(update.without_gradient() == std::vector<std::uint32_t>{1});
    const Messages messages = all_of(update.packers(range_bytes)[0]);
    REQUIRE(messages[0].size() == 2);
    CHECK(messages[0][1].packed_offset_bytes == 12);
    CHECK(elements_of<float>(messages[0][1]) == c);
}

TEST_CASE("a large array is sliced at whole elements, and what is left joins the next") {
    const Layout layout = make_layout({DType::float32}, {{"a", {2}, 0}, {"b", {3}, 0}});
    const Update update(layout, {{"a", a}, {"b", b}}, {}, "push");
    const Messages messages = all_of(update.packers(10)[0]);
    REQUIRE(messages.size() == 3);  // of 8, 8 and 4 bytes
    CHECK(elements_of<float>(messages[0][0]) == a);
    CHECK(messages[1][0].packed_offset_bytes == 8);
    CHECK(elements_of<float>(messages[1][0]) == std::vector<float>{3, 4});
    CHECK(messages[2][0].packed_offset_bytes == 16);
    CHECK(elements_of<float>(messages[2][0]) == std::vector<float>{5});
    for (const auto& message : messages) CHECK(message.size() == 1);
}

TEST_CASE("gradients of a narrower type say so, and offsets count in the group's") {
    const Layout layout = make_layout({DType::float32}, {{"a", {2}, 0}, {"b", {3}, 0}});
    const std::vector<Half> halves(2, Half(1.0F));
    const Update update(layout, {{"a", halves}, {"b", b}}, {}, "push");
    const Messages messages = all_of(update.packers(range_bytes)[0]);
    REQUIRE(messages[0].size() == 2);
    CHECK(messages[0][0].dtype == v1::D_TYPE_FLOAT16);
    CHECK(messages[0][0].size_bytes() == 4);
    CHECK(messages[0][1].dtype == v1::D_TYPE_UNSPECIFIED);
    CHECK(messages[0][1].packed_offset_bytes == 8);
}

TEST_CASE("inputs have numbers from 1, and nothing at all is one message") {
    UpdateOptions options;
    options.inputs["hessian"] = {{"a", a}};
    const Update update(two_groups, {{"a", no_gradient}, {"b", no_gradient}, {"x", no_gradient}, {"none", no_gradient}},
                        options, "push");
    REQUIRE(update.packers(range_bytes).size() == 2);
    CHECK(all_of(update.packers(range_bytes)[0]).size() == 1);
    CHECK(all_of(update.packers(range_bytes)[0])[0].empty());
    CHECK(all_of(update.packers(range_bytes)[1])[0][0].input == 1);
    CHECK(update.inputs() == std::vector<std::string>{"hessian"});
}

TEST_CASE("what is no gradient is refused before anything is sent") {
    const Gradient ga("a", a), gb("b", b), gx("x", x), gn("none", none_at_all);
    CHECK(refusal({ga, gb, gx, gn}) == ErrorReason::unknown);  // no refusal
    CHECK(refusal({ga, gb, gx}) == ErrorReason::invalid_gradient);
    CHECK(refusal({ga, gb, gx, gn, {"d", a}}) == ErrorReason::invalid_gradient);
    CHECK(refusal({ga, ga, gb, gx, gn}) == ErrorReason::invalid_gradient);
    CHECK(refusal({{"a", b}, gb, gx, gn}) == ErrorReason::invalid_gradient);
    CHECK(refusal({{"a", {1, 2}, a}, gb, gx, gn}) == ErrorReason::invalid_gradient);
    CHECK(refusal({{"a", {2}, a}, gb, gx, gn}) == ErrorReason::unknown);
    CHECK(refusal({{"a", std::vector<double>(2)}, gb, gx, gn}) == ErrorReason::invalid_gradient);
    CHECK(refusal({ga, gb, {"x", std::vector<float>(1)}, gn}) == ErrorReason::unknown);  // float64 holds float32
    UpdateOptions rows;
    rows.rows = {{"t", {}, Elements(a)}};
    CHECK(refusal({ga, gb, gx, gn}, rows) == ErrorReason::unknown_table);
    const Layout frozen = make_layout({DType::float32, DType::float32}, {{"a", {2}, 0}, {"cold", {2}, 1}}, {1});
    CHECK(reason_of([&] { Update(frozen, {{"a", a}, {"cold", a}}, {}, "push"); }) == ErrorReason::invalid_gradient);
    CHECK(reason_of([&] { Update(frozen, {{"a", a}}, {}, "push"); }) == ErrorReason::unknown);
}

TEST_CASE("rows are cut by their width") {
    const std::vector<std::int64_t> ids = {5, -1, 7};
    const std::vector<float> data = {1, 2, 3, 4, 5, 6};
    const RowsPart rows{3, 8, ids, {reinterpret_cast<const std::byte*>(data.data()), 24}, {}};
    CHECK(rows.rows_per_message() == (1 << 20) / 16);
    v1::Rows message;
    rows.write(message, 1, 2);
    CHECK(message.table() == 3);
    CHECK(message.ids().size() == 16);
    CHECK(message.data().size() == 16);
    CHECK(message.data()[3] == 0x40);  // of 3.0F
}
