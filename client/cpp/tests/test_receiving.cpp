// Where ranges go, by hand.
#include <doctest/doctest.h>

#include <cstring>

#include "encoding.hpp"
#include "layouts.hpp"
#include "receiving.hpp"

using namespace stepwell;
using testing::make_layout;
using testing::reason_of;

namespace {

const Layout layout = make_layout({DType::float32, DType::float64},
                                  {{"a", {2}, 0}, {"x", {}, 1}, {"b", {3}, 0}, {"c", {1}, 0}, {"none", {0}, 0}});

v1::Range range_of(std::uint32_t group, std::uint64_t offset_bytes, const std::vector<float>& elements) {
    v1::Range range;
    range.set_group(group);
    range.set_packed_offset_bytes(offset_bytes);
    range.set_data(elements.data(), elements.size() * sizeof(float));
    return range;
}

std::vector<const LayoutParameter*> chosen(const std::vector<const char*>& names) {
    std::vector<const LayoutParameter*> parameters;
    for (const char* name : names) parameters.push_back(&layout.get(name));
    return parameters;
}

std::vector<float> floats(const Arrays& arrays, const char* name) {
    const Span<float> span = arrays.get<float>(name);
    return {span.begin(), span.end()};
}

}  // namespace

TEST_CASE("ranges may come in any order, across parameters") {
    Received received(layout, chosen({"b", "a", "none", "c"}), {}, {}, nullptr);
    received.begin();
    received.put(range_of(0, 12, {4, 5, 6}));
    received.put(range_of(0, 0, {1, 2, 3}));
    const Arrays arrays = received.arrays(false);
    CHECK(floats(arrays, "a") == std::vector<float>{1, 2});
    CHECK(floats(arrays, "b") == std::vector<float>{3, 4, 5});
    CHECK(floats(arrays, "c") == std::vector<float>{6});
    CHECK(arrays.begin()->name == "b");
    CHECK(arrays.find("none")->size == 0);
    CHECK(arrays.find("x") == nullptr);
    CHECK(arrays.get<double>("a").empty());
}

TEST_CASE("a subset with a gap takes its own and nothing else") {
    Received received(layout, chosen({"c", "a"}), {}, {}, nullptr);
    received.begin();
    received.put(range_of(0, 0, {1, 2}));
    received.begin();  // another try starts over
    received.put(range_of(0, 0, {1, 2}));
    CHECK(reason_of([&] { received.arrays(false); }) == ErrorReason::internal);  // c is missing
    received.put(range_of(0, 20, {6}));
    CHECK(floats(received.arrays(false), "c") == std::vector<float>{6});

    Received other(layout, chosen({"a"}), {}, {}, nullptr);
    CHECK(reason_of([&] { other.put(range_of(0, 0, {1})); }) == ErrorReason::internal);  // not announced
    other.begin();
    CHECK(reason_of([&] { other.put(range_of(0, 4, {1, 2})); }) == ErrorReason::internal);
    CHECK(reason_of([&] { other.put(range_of(1, 0, {1, 2})); }) == ErrorReason::internal);
    CHECK(reason_of([&] { other.put(range_of(7, 0, {1})); }) == ErrorReason::internal);
}

TEST_CASE("memory of the caller's is filled in place") {
    std::vector<float> a(2), wrong(3);
    std::vector<double> double_a(2);
    Received received(layout, chosen({"a"}), {{"a", a}}, {}, nullptr);
    received.begin();
    received.put(range_of(0, 0, {8, 9}));
    CHECK(received.arrays(false).get<float>("a").data() == a.data());
    CHECK(a == std::vector<float>{8, 9});
    const auto refusal = [](const std::vector<Output>& into) {
        return reason_of([&] { Received(layout, chosen({"a"}), into, {}, nullptr); });
    };
    CHECK(refusal({{"a", wrong}}) == ErrorReason::invalid_value);
    CHECK(refusal({{"a", double_a}}) == ErrorReason::invalid_value);
    CHECK(refusal({{"a", a}, {"b", wrong}}) == ErrorReason::invalid_value);
    CHECK(refusal({{"b", wrong}}) == ErrorReason::invalid_value);
}

TEST_CASE("nothing comes where nothing is newer") {
    Received received(layout, chosen({"a"}), {}, {}, nullptr);
    const Arrays arrays = received.arrays(true);
    CHECK(arrays.unchanged());
    CHECK(arrays.size() == 0);
}

TEST_CASE("a layout that is not whole, or has gaps, is refused") {
    v1::Layout message;
    CHECK(reason_of([&] { Layout{message}; }) == ErrorReason::internal);
    message.set_last(true);
    CHECK(reason_of([&] { Layout{message}; }) == ErrorReason::unknown);
    auto& group = *message.add_groups();
    group.set_dtype(v1::D_TYPE_FLOAT32);
    group.set_packed_bytes(8);
    auto& parameter = *message.add_parameters();
    parameter.set_name("w");
    CHECK(reason_of([&] { Layout{message}; }) == ErrorReason::internal);
    group.set_packed_bytes(4);
    CHECK(reason_of([&] { Layout{message}; }) == ErrorReason::unknown);
    parameter.set_packed_offset_bytes(4);
    CHECK(reason_of([&] { Layout{message}; }) == ErrorReason::internal);
    parameter.set_group(3);
    CHECK(reason_of([&] { Layout{message}; }) == ErrorReason::internal);
}
