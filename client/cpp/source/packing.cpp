#include "packing.hpp"

#include <algorithm>
#include <set>

#include "encoding.hpp"
#include "failures.hpp"

namespace stepwell {

namespace {

/// What a range takes in a message beside its data, at most; counted from a message's second range on, so that
/// thousands of tiny ranges stay bounded and one large array is cut at whole range_bytes.
constexpr std::size_t range_overhead_bytes = 24;

using ByParameter = std::vector<std::optional<Elements>>;

/// Whether the state of parameters of one type holds elements of another exactly. 16-bit parameters have 32.
bool widened(DType parameter, DType gradient) {
    if (parameter == gradient || gradient == DType::float16 || gradient == DType::bfloat16) return true;
    return gradient == DType::float32 && parameter != DType::float32;
}

void check_array(const LayoutParameter& parameter, const Gradient& gradient, const std::string& what) {
    const Elements& array = *gradient.values;
    if (!widened(parameter.dtype, array.dtype())) {
        fail(ErrorReason::invalid_gradient,
             what + ": gradient for '" + parameter.name + "' has dtype " + name_of(array.dtype()) + ", expected " +
                 name_of(parameter.dtype) + "; convert it yourself, so that no precision is lost unseen",
             {{"parameter", parameter.name}, {"got", name_of(array.dtype())}, {"expected", name_of(parameter.dtype)}});
    }
    const bool fits = gradient.shape ? *gradient.shape == parameter.shape : array.size() == parameter.elements;
    if (fits && array.size() == parameter.elements) return;
    const std::string got = gradient.shape && *gradient.shape != parameter.shape
                                ? "shape " + in_words(*gradient.shape)
                                : std::to_string(array.size()) + " elements";
    const std::string expected = in_words(parameter.shape) + ", " + std::to_string(parameter.elements) + " elements";
    fail(ErrorReason::invalid_gradient,
         what + ": gradient for '" + parameter.name + "' has " + got + ", expected " + expected +
             "; push gradients in the parameter's own shape",
         {{"parameter", parameter.name}, {"got", got}, {"expected", in_words(parameter.shape)}});
}

/// By index of the parameter. named: whether each was given, even as no_gradient.
ByParameter check_arrays(const Layout& layout, const Gradients& gradients, const std::string& what,
                         std::vector<bool>& named) {
    ByParameter arrays(layout.parameters().size());
    std::vector<std::string> unknown, frozen;
    for (const Gradient& gradient : gradients) {
        const LayoutParameter* parameter = layout.find(gradient.name);
        if (parameter == nullptr || parameter->frozen) {
            unknown.push_back(gradient.name);
            if (parameter) frozen.push_back(gradient.name);
            continue;
        }
        if (named[parameter->index]) {
            fail(ErrorReason::invalid_gradient,
                 what + ": got two gradients for '" + gradient.name + "', expected one; add them up first");
        }
        named[parameter->index] = true;
        if (!gradient.values) continue;
        check_array(*parameter, gradient, what);
        arrays[parameter->index] = gradient.values;
    }
    if (!unknown.empty()) {
        const std::string why = frozen.empty() ? "" : "; " + listed(frozen) + " is frozen and takes none";
        fail(ErrorReason::invalid_gradient,
             what + ": got gradients for " + listed(unknown) + ", which the run does not train, expected the names " +
                 listed(layout.trained_names()) + why + "; leave them out",
             {{"got", listed(unknown)}});
    }
    return arrays;
}

void check_none_missing(const Layout& layout, const std::vector<bool>& named, const std::string& what) {
    std::vector<std::string> missing;
    for (const LayoutParameter& parameter : layout.parameters()) {
        if (!parameter.frozen && !named[parameter.index]) missing.push_back(parameter.name);
    }
    if (missing.empty()) return;
    fail(ErrorReason::invalid_gradient,
         what + ": got no gradient for " + listed(missing) +
             ", expected every parameter to be named; give no_gradient "
             "for a parameter that has none in this update",
         {{"missing", listed(missing)}});
}

std::vector<OutgoingArray> in_order(const Layout& layout, const ByParameter& arrays) {
    std::vector<OutgoingArray> parts;
    for (const LayoutGroup& group : layout.groups()) {
        for (const std::uint32_t member : group.members) {
            const LayoutParameter& parameter = layout.parameters()[member];
            if (arrays[member])
                parts.push_back({parameter.group, parameter.offset_bytes, *arrays[member], group.dtype});
        }
    }
    return parts;
}

RowsPart check_rows(const Layout& layout, const RowGradients& rows, const std::string& what) {
    const LayoutTable& table = layout.get_table(rows.table);
    const Elements& given = rows.gradients;
    if (!widened(table.dtype, given.dtype()) || given.size() != rows.ids.size() * table.width) {
        fail(ErrorReason::invalid_rows,
             what + ": table '" + table.name + "': got " + std::to_string(given.size()) + " elements of " +
                 name_of(given.dtype()) + " for " + std::to_string(rows.ids.size()) + " ids, expected " +
                 std::to_string(rows.ids.size() * table.width) + " of " + name_of(table.dtype) +
                 "; give each id a row of " + std::to_string(table.width),
             {{"table", table.name}});
    }
    RowsPart part{
        table.index, table.row_bytes(), rows.ids, {static_cast<const std::byte*>(given.data()), given.size_bytes()}};
    if (given.dtype() != table.dtype) {
        part.owned = std::make_shared<const std::vector<std::byte>>(convert(part.data, given.dtype(), table.dtype));
        part.data = *part.owned;
    }
    return part;
}

}  // namespace

std::size_t Piece::size_bytes() const {
    std::size_t size = 0;
    for (const Bytes& part : parts) size += part.size();
    return size;
}

void Piece::write(v1::Range& message) const {
    message.set_group(group);
    message.set_packed_offset_bytes(packed_offset_bytes);
    message.set_input(input);
    message.set_dtype(dtype);
    std::string& data = *message.mutable_data();
    data.reserve(size_bytes());
    for (const Bytes& part : parts) data.append(reinterpret_cast<const char*>(part.data()), part.size());
    if (!encoded) return;
    message.set_encoding(encoded->name);
    message.set_elements(encoded->elements);
    message.set_scales(encoded->scales);
    message.set_indices(encoded->indices);
}

Packer::Packer(std::vector<OutgoingArray> parts, std::uint32_t input, std::size_t message_bytes_max)
    : parts_(std::move(parts)), input_(input), message_bytes_max_(message_bytes_max) {}

bool Packer::next(std::vector<Piece>& message) {
    message.clear();
    if (over_) return false;
    std::size_t message_bytes = 0;
    std::uint64_t end = 0;  // of the open range, which is the message's last
    bool open = false;
    for (; at_ < parts_.size(); ++at_, taken_ = 0, open = open && !message.empty()) {
        const OutgoingArray& part = parts_[at_];
        const std::size_t size_bytes = part.array.size_bytes();
        const std::size_t item_bytes = element_bytes(part.array.dtype());
        const std::size_t group_item_bytes = element_bytes(part.group_dtype);
        const v1::DType dtype = part.array.dtype() == part.group_dtype
                                    ? v1::D_TYPE_UNSPECIFIED
                                    : static_cast<v1::DType>(static_cast<int>(part.array.dtype()));
        while (taken_ < size_bytes) {
            const std::uint64_t begin = part.offset_bytes + taken_ / item_bytes * group_item_bytes;
            open = open && message.back().group == part.group && end == begin && message.back().dtype == dtype;
            if (!open && !message.empty()) message_bytes += range_overhead_bytes;
            const std::size_t left = message_bytes_max_ - std::min(message_bytes, message_bytes_max_);
            const std::size_t size = std::min(left / item_bytes * item_bytes, size_bytes - taken_);
            if (size == 0) return true;
            if (!open) {
                message.push_back({part.group, begin, {}, input_, dtype, {}, {}});
                open = true;
            }
            message.back().parts.push_back({static_cast<const std::byte*>(part.array.data()) + taken_, size});
            taken_ += size;
            message_bytes += size;
            end = begin + size / item_bytes * group_item_bytes;
        }
    }
    over_ = true;
    return true;
}

std::size_t RowsPart::rows_per_message() const {
    return std::max<std::size_t>(1, range_bytes / (row_bytes + sizeof(std::int64_t)));
}

void RowsPart::write(v1::Rows& message, std::size_t begin, std::size_t count) const {
    message.set_table(table);
    message.set_ids(reinterpret_cast<const char*>(ids.data() + begin), count * sizeof(std::int64_t));
    message.set_data(reinterpret_cast<const char*>(data.data() + begin * row_bytes), count * row_bytes);
}

Update::Update(const Layout& layout, const Gradients& gradients, const UpdateOptions& options,
               const std::string& what) {
    std::vector<bool> named(layout.parameters().size());
    const ByParameter arrays = check_arrays(layout, gradients, what, named);
    if (options.rows_only && !gradients.empty()) {
        fail(ErrorReason::invalid_gradient,
             what + ": got gradients with rows_only, expected none; leave them out, or rows_only");
    }
    if (!options.rows_only) check_none_missing(layout, named, what);
    for (const LayoutParameter& parameter : layout.parameters()) {
        if (!options.rows_only && !parameter.frozen && !arrays[parameter.index]) {
            without_gradient_.push_back(parameter.index);
        }
    }
    gradients_ = in_order(layout, arrays);
    for (const auto& [name, values] : options.inputs) {
        // Which parameters need one is the server's to say.
        std::vector<bool> given(layout.parameters().size());
        inputs_.push_back(name);
        input_parts_.push_back(in_order(layout, check_arrays(layout, values, what + ": " + name, given)));
    }
    if (options.rows_only && options.rows.empty()) {
        fail(ErrorReason::invalid_rows,
             what + ": got no table, expected one or more; name the tables, with no ids where there are none");
    }
    std::set<std::string> tables;
    for (const RowGradients& rows : options.rows) {
        if (!tables.insert(rows.table).second) {
            fail(ErrorReason::invalid_rows,
                 what + ": got two lists of rows for table '" + rows.table + "', expected one; join them");
        }
        rows_.push_back(check_rows(layout, rows, what));
    }
}

std::vector<Packer> Update::packers(std::size_t message_bytes_max) const {
    std::vector<Packer> packers{Packer(gradients_, 0, message_bytes_max)};
    std::uint32_t number = 0;
    for (const std::vector<OutgoingArray>& parts : input_parts_) packers.emplace_back(parts, ++number);
    return packers;
}

std::vector<OutgoingArray> value_parts(const Layout& layout, const std::vector<Parameter>& parameters) {
    ByParameter arrays(layout.parameters().size());
    for (const Parameter& parameter : parameters) arrays[layout.get(parameter.name).index] = parameter.values;
    return in_order(layout, arrays);
}

}  // namespace stepwell
