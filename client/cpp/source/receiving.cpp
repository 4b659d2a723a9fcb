#include "receiving.hpp"

#include <algorithm>
#include <cstring>

#include "builder.hpp"
#include "encoding.hpp"
#include "failures.hpp"

namespace stepwell {

namespace {

/// Not filled with anything.
std::unique_ptr<std::byte[]> allocate_bytes(std::size_t size) {
    return std::unique_ptr<std::byte[]>(new std::byte[std::max<std::size_t>(size, 1)]);
}

/// The targets of `into`, in the order of the parameters; throws Failure with invalid_value where they do not fit.
std::vector<std::byte*> check_into(const std::vector<const LayoutParameter*>& parameters,
                                   const std::vector<Output>& into) {
    std::map<std::string, const Output*> by_name;
    for (const Output& output : into) by_name[output.name] = &output;
    std::vector<std::byte*> targets;
    for (const LayoutParameter* parameter : parameters) {
        const auto found = by_name.find(parameter->name);
        if (found == by_name.end() || by_name.size() != parameters.size() || into.size() != parameters.size()) {
            std::vector<std::string> wanted;
            for (const LayoutParameter* each : parameters) wanted.push_back(each->name);
            fail(ErrorReason::invalid_value,
                 "got `into` for other names, expected each of " + listed(wanted) + " once; give exactly these");
        }
        const MutableElements& values = found->second->values;
        if (values.dtype() != parameter->dtype || values.size() != parameter->elements) {
            fail(ErrorReason::invalid_value,
                 "`into` for '" + parameter->name + "': got " + std::to_string(values.size()) + " elements of " +
                     name_of(values.dtype()) + ", expected " + std::to_string(parameter->elements) + " of " +
                     name_of(parameter->dtype) + "; give memory of that type and size");
        }
        targets.push_back(static_cast<std::byte*>(values.data()));
    }
    return targets;
}

}  // namespace

struct Received::RowsBuffer {
    const LayoutTable* table;
    std::size_t count;
    std::size_t filled;
    std::byte* target;
    std::unique_ptr<std::byte[]> own;
};

void Destination::add(std::uint32_t group, std::uint64_t offset_bytes, std::byte* target, std::size_t size_bytes) {
    if (size_bytes == 0) return;
    segments_[group].push_back({offset_bytes, target, size_bytes});
    size_bytes_ += size_bytes;
}

void Destination::place(std::uint32_t group, std::uint64_t offset_bytes, std::size_t size_bytes,
                        const std::function<void(std::byte*, std::size_t, std::size_t)>& write) {
    if (group >= segments_.size()) {
        fail(ErrorReason::internal, "got a range of group " + std::to_string(group) + ", expected none; report this");
    }
    const std::vector<Segment>& segments = segments_[group];
    auto segment =
        std::upper_bound(segments.begin(), segments.end(), offset_bytes,
                         [](std::uint64_t offset, const Segment& each) { return offset < each.offset_bytes; });
    if (segment != segments.begin()) --segment;
    std::size_t taken = 0;
    while (taken < size_bytes) {
        const std::uint64_t at = offset_bytes + taken;
        if (segment == segments.end() || at < segment->offset_bytes ||
            at - segment->offset_bytes >= segment->size_bytes) {
            fail(ErrorReason::internal, "got bytes at " + std::to_string(at) + " of group " + std::to_string(group) +
                                            ", expected none; report this");
        }
        const std::uint64_t inside = at - segment->offset_bytes;
        const std::size_t size = std::min<std::size_t>(segment->size_bytes - inside, size_bytes - taken);
        write(segment->target + inside, taken, taken + size);
        taken += size;
        ++segment;
    }
    filled_bytes_ += size_bytes;
}

void Destination::check_full() const {
    if (filled_bytes_ == size_bytes_) return;
    fail(ErrorReason::internal, "got " + std::to_string(filled_bytes_) + " bytes of parameters, expected " +
                                    std::to_string(size_bytes_) + "; report this");
}

Received::Received(const Layout& layout, std::vector<const LayoutParameter*> parameters,
                   const std::vector<Output>& into, const std::vector<RowSelection>& rows, const Decoder* decoder)
    : layout_(layout), parameters_(std::move(parameters)), decoder_(decoder) {
    if (!into.empty()) targets_ = check_into(parameters_, into);
    for (const RowSelection& selection : rows) {
        const LayoutTable& table = layout.get_table(selection.table);
        for (const RowsBuffer& other : rows_) {
            if (other.table != &table) continue;
            fail(ErrorReason::invalid_rows,
                 "got two selections of rows of table '" + table.name + "', expected one; join them");
        }
        const std::optional<MutableElements>& memory = selection.into;
        if (memory && (memory->dtype() != table.dtype || memory->size() != selection.ids.size() * table.width)) {
            fail(ErrorReason::invalid_rows, "`into` for rows of table '" + table.name + "': got " +
                                                std::to_string(memory->size()) + " elements of " +
                                                name_of(memory->dtype()) + ", expected " +
                                                std::to_string(selection.ids.size() * table.width) + " of " +
                                                name_of(table.dtype) + "; give memory of that type and size");
        }
        auto* target = memory ? static_cast<std::byte*>(memory->data()) : nullptr;
        rows_.push_back({&table, selection.ids.size(), 0, target, nullptr});
    }
}

Received::~Received() = default;

void Received::begin() {
    if (targets_.empty()) allocate();
    // Segments of a group have to come in the order of their offsets.
    std::vector<std::size_t> order(parameters_.size());
    for (std::size_t index = 0; index < order.size(); ++index) order[index] = index;
    std::sort(order.begin(), order.end(), [this](std::size_t left, std::size_t right) {
        return parameters_[left]->offset_bytes < parameters_[right]->offset_bytes;
    });
    destination_.emplace(layout_.groups().size());
    for (const std::size_t index : order) {
        const LayoutParameter& parameter = *parameters_[index];
        destination_->add(parameter.group, parameter.offset_bytes, targets_[index], parameter.size_bytes());
    }
    for (RowsBuffer& rows : rows_) {
        rows.filled = 0;
        if (rows.target) continue;
        rows.own = allocate_bytes(rows.count * rows.table->row_bytes());
        rows.target = rows.own.get();
    }
}

void Received::allocate() {
    std::vector<std::size_t> sizes(layout_.groups().size());
    for (const LayoutParameter* parameter : parameters_) sizes[parameter->group] += parameter->size_bytes();
    std::vector<std::byte*> free;
    for (const std::size_t size : sizes) {
        buffers_.push_back(allocate_bytes(size));
        free.push_back(buffers_.back().get());
    }
    for (const LayoutParameter* parameter : parameters_) {
        targets_.push_back(free[parameter->group]);
        free[parameter->group] += parameter->size_bytes();
    }
}

void Received::put(const v1::Range& range) {
    if (!destination_ || range.group() >= layout_.groups().size()) {
        fail(ErrorReason::internal, "got a range of group " + std::to_string(range.group()) +
                                        " that was not announced, expected none; report this");
    }
    if (range.dtype() != v1::D_TYPE_UNSPECIFIED || !range.encoding().empty()) {
        if (!decoder_) {
            fail(ErrorReason::internal, "got an encoded range, expected plain elements; report this");
        }
        const DType dtype = layout_.groups()[range.group()].dtype;
        const std::vector<std::byte> plain = decoder_->decode(range, dtype);
        destination_->place(range.group(), range.packed_offset_bytes(), plain.size(),
                            [&plain](std::byte* target, std::size_t begin, std::size_t end) {
                                std::memcpy(target, plain.data() + begin, end - begin);
                            });
        return;
    }
    const std::string& data = range.data();
    destination_->place(range.group(), range.packed_offset_bytes(), data.size(),
                        [&data](std::byte* target, std::size_t begin, std::size_t end) {
                            std::memcpy(target, data.data() + begin, end - begin);
                        });
}

void Received::put(const v1::Rows& rows) {
    for (RowsBuffer& buffer : rows_) {
        if (buffer.table->index != rows.table() || !buffer.target) continue;
        const std::uint64_t row_bytes = buffer.table->row_bytes();
        const std::uint64_t count = row_bytes ? rows.data().size() / row_bytes : 0;
        if (rows.first() > buffer.count || count > buffer.count - rows.first() ||
            count * row_bytes != rows.data().size()) {
            break;
        }
        if (count) std::memcpy(buffer.target + rows.first() * row_bytes, rows.data().data(), rows.data().size());
        buffer.filled += count;
        return;
    }
    fail(ErrorReason::internal, "got rows of table " + std::to_string(rows.table()) + " from " +
                                    std::to_string(rows.first()) + " on, which were not asked for; report this");
}

Arrays Received::arrays(bool unchanged) {
    Arrays::Builder builder;
    if (unchanged) return builder.unchanged();
    if (!destination_) fail(ErrorReason::internal, "got no parameters, expected them; report this");
    destination_->check_full();
    for (std::size_t index = 0; index < parameters_.size(); ++index) {
        const LayoutParameter& parameter = *parameters_[index];
        builder.add({parameter.name, parameter.shape, parameter.dtype, targets_[index], parameter.elements});
    }
    for (auto& buffer : buffers_) builder.own(std::move(buffer));
    for (RowsBuffer& rows : rows_) {
        if (rows.filled != rows.count) {
            fail(ErrorReason::internal, "got " + std::to_string(rows.filled) + " rows of table '" + rows.table->name +
                                            "', expected " + std::to_string(rows.count) + "; report this");
        }
        const LayoutTable& table = *rows.table;
        builder.add_rows({table.name,
                          table.width,
                          {table.name, {rows.count, table.width}, table.dtype, rows.target, rows.count * table.width}});
        if (rows.own) builder.own(std::move(rows.own));
    }
    return std::move(builder.arrays);
}

}  // namespace stepwell
