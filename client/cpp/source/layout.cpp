#include "layout.hpp"

#include <algorithm>
#include <limits>

#include "failures.hpp"

namespace stepwell {

namespace {

constexpr std::size_t names_listed_max = 10;

std::uint64_t count_elements(const Shape& shape) {
    std::uint64_t count = 1;
    for (const std::uint64_t length : shape) {
        if (length != 0 && count > std::numeric_limits<std::uint64_t>::max() / 8 / length) {
            fail(ErrorReason::internal, "got a layout with a parameter of shape " + in_words(shape) + "; report this");
        }
        count *= length;
    }
    return count;
}

}  // namespace

Layout::Layout(const v1::Layout& message) {
    if (!message.last()) {
        fail(ErrorReason::internal, "got a layout without its last piece, expected it whole; see the server's log");
    }
    for (const auto& group : message.groups()) {
        groups_.push_back({group.name(), decode_dtype(group.dtype()), group.packed_bytes(), group.frozen(), {}});
    }
    for (const auto& each : message.parameters()) {
        if (each.group() >= groups_.size()) {
            fail(ErrorReason::internal, "got a layout with group " + std::to_string(each.group()) + " of " +
                                            std::to_string(groups_.size()) + "; see the server's log");
        }
        LayoutGroup& group = groups_[each.group()];
        const auto index = static_cast<std::uint32_t>(parameters_.size());
        Shape shape(each.shape().begin(), each.shape().end());
        const std::uint64_t elements = count_elements(shape);
        parameters_.push_back({each.name(), index, std::move(shape), group.dtype, each.group(),
                               each.packed_offset_bytes(), elements, group.frozen});
        group.members.push_back(index);
        by_name_[each.name()] = index;
    }
    for (const auto& table : message.tables()) {
        const auto index = static_cast<std::uint32_t>(tables_.size());
        tables_.push_back({table.name(), index, table.width(), decode_dtype(table.dtype())});
    }
    for (LayoutGroup& group : groups_) {
        std::stable_sort(group.members.begin(), group.members.end(), [this](std::uint32_t left, std::uint32_t right) {
            return parameters_[left].offset_bytes < parameters_[right].offset_bytes;
        });
    }
    check();
}

void Layout::check() const {
    // The arrays that are given out rest on it.
    for (const LayoutGroup& group : groups_) {
        std::uint64_t end = 0;
        for (const std::uint32_t member : group.members) {
            const LayoutParameter& parameter = parameters_[member];
            if (parameter.offset_bytes != end) {
                fail(ErrorReason::internal,
                     "got a layout with a gap before '" + parameter.name + "', expected none; report this");
            }
            end += parameter.size_bytes();
        }
        if (end != group.packed_bytes) {
            fail(ErrorReason::internal, "got a layout whose group '" + group.name + "' holds " + std::to_string(end) +
                                            " of " + std::to_string(group.packed_bytes) + " bytes; report this");
        }
    }
}

const LayoutParameter* Layout::find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &parameters_[found->second];
}

const LayoutParameter& Layout::get(const std::string& name) const {
    if (const LayoutParameter* found = find(name)) return *found;
    std::vector<std::string> names;
    for (const LayoutParameter& parameter : parameters_) names.push_back(parameter.name);
    fail(ErrorReason::unknown_parameter,
         "got parameter '" + name.substr(0, 200) + "', expected one of " + listed(names) + "; choose one of them",
         {{"got", name.substr(0, 200)}});
}

const LayoutTable& Layout::get_table(const std::string& name) const {
    std::vector<std::string> names;
    for (const LayoutTable& table : tables_) {
        if (table.name == name) return table;
        names.push_back(table.name);
    }
    fail(ErrorReason::unknown_table,
         "got table '" + name.substr(0, 200) + "', expected one of " + listed(names) + "; choose one of them",
         {{"got", name.substr(0, 200)}});
}

const LayoutTable* Layout::table_at(std::uint32_t index) const {
    return index < tables_.size() ? &tables_[index] : nullptr;
}

std::vector<std::string> Layout::trained_names() const {
    std::vector<std::string> names;
    for (const LayoutParameter& parameter : parameters_) {
        if (!parameter.frozen) names.push_back(parameter.name);
    }
    return names;
}

DType decode_dtype(v1::DType dtype) {
    switch (dtype) {
        case v1::D_TYPE_FLOAT32:
        case v1::D_TYPE_FLOAT64:
        case v1::D_TYPE_FLOAT16:
        case v1::D_TYPE_BFLOAT16:
            return static_cast<DType>(dtype);
        default:
            fail(ErrorReason::internal, "got dtype code " + std::to_string(static_cast<int>(dtype)) +
                                            ", expected one of 1 to 4; upgrade stepwell");
    }
}

std::string listed(const std::vector<std::string>& names) {
    if (names.empty()) return "(none)";
    std::string text;
    for (std::size_t index = 0; index < std::min(names.size(), names_listed_max); ++index) {
        text += (index ? ", '" : "'") + names[index] + "'";
    }
    if (names.size() > names_listed_max) text += ", ... (" + std::to_string(names.size() - names_listed_max) + " more)";
    return text;
}

std::string in_words(const Shape& shape) {
    std::string text = "(";
    for (std::size_t index = 0; index < shape.size(); ++index) {
        text += (index ? ", " : "") + std::to_string(shape[index]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace stepwell
