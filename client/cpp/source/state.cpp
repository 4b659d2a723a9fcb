#include <cstring>
#include <functional>
#include <set>
#include <tuple>

#include "core.hpp"
#include "methods.hpp"
#include "packing.hpp"
#include "stepwell/v1/control.pb.h"

namespace stepwell {

namespace {

/// Which array of a state: the group's index, the kind, and the name of the slot or scalar.
using Key = std::tuple<std::uint32_t, int, std::string>;

/// The type in which the server keeps parameters of a type, and their slots.
DType state_dtype(DType dtype) { return element_bytes(dtype) == 2 ? DType::float32 : dtype; }

std::uint64_t count_elements(const Shape& shape) {
    std::uint64_t count = 1;
    for (const std::uint64_t length : shape) count *= length;
    return count;
}

/// Puts a state together from its pieces.
class StatePieces {
public:
    explicit StatePieces(const Layout& layout) : layout_(layout) {}

    void add(const v1::GetStateResponse& message) {
        if (message.has_header()) header_ = message.header();
        for (const auto& slot : message.slot_shapes()) {
            auto& shapes = shapes_[{slot.group(), slot.name()}];
            for (const auto& shape : slot.shapes()) shapes.emplace_back(shape.lengths().begin(), shape.lengths().end());
        }
        for (const auto& piece : message.ranges()) {
            if (piece.range().group() >= layout_.groups().size()) {
                fail(ErrorReason::internal,
                     "got a piece of group " + std::to_string(piece.range().group()) + ", expected none; report this");
            }
            std::string& bytes = arrays_[{piece.range().group(), piece.kind(), piece.name()}];
            if (piece.range().packed_offset_bytes() != bytes.size()) {
                fail(ErrorReason::internal, "got state at byte " + std::to_string(piece.range().packed_offset_bytes()) +
                                                ", expected " + std::to_string(bytes.size()) + "; report this");
            }
            bytes += piece.range().data();
        }
    }

    State state() {
        State state;
        state.version = header_.version();
        state.samples = header_.samples();
        for (const LayoutParameter& parameter : layout_.parameters()) {
            state.slots[parameter.name];
            state.scalars[parameter.name];
        }
        // An array without elements sends no pieces.
        for (std::uint32_t group = 0; group < layout_.groups().size(); ++group) {
            arrays_[{group, v1::STATE_KIND_PARAMETERS, ""}];
        }
        for (const auto& [key, bytes] : arrays_) place(key, bytes, state);
        return state;
    }

private:
    void place(const Key& key, const std::string& bytes, State& state) const {
        const auto& [group, kind, name] = key;
        std::size_t at = 0, number = 0;
        const auto take = [&](void* target, std::size_t size) {
            if (size > bytes.size() - at) {
                fail(ErrorReason::internal, "got " + std::to_string(bytes.size()) + " bytes of '" + name +
                                                "' in group " + std::to_string(group) + ", expected more; report this");
            }
            if (size) std::memcpy(target, bytes.data() + at, size);
            at += size;
        };
        const auto found = shapes_.find({group, name});
        for (const std::uint32_t member : layout_.groups()[group].members) {
            const LayoutParameter& parameter = layout_.parameters()[member];
            if (kind == v1::STATE_KIND_SCALAR) {
                take(&state.scalars[parameter.name][name], sizeof(double));
            } else if (kind == v1::STATE_KIND_STEPS) {
                take(&state.steps[parameter.name], sizeof(std::int64_t));
            } else {
                StateArray array;
                array.shape =
                    found != shapes_.end() && number < found->second.size() ? found->second[number] : parameter.shape;
                array.dtype = state_dtype(parameter.dtype);
                array.bytes.resize(count_elements(array.shape) * element_bytes(array.dtype));
                take(array.bytes.data(), array.bytes.size());
                if (kind == v1::STATE_KIND_PARAMETERS) {
                    state.parameters[parameter.name] = std::move(array);
                } else {
                    state.slots[parameter.name][name] = std::move(array);
                }
            }
            ++number;
        }
    }

    const Layout& layout_;
    v1::StateHeader header_;
    std::map<Key, std::string> arrays_;
    std::map<std::pair<std::uint32_t, std::string>, std::vector<Shape>> shapes_;
};

/// The arrays of a state in the order in which they are sent.
class StateParts {
public:
    StateParts(const State& state, const Layout& layout) : state_(state), layout_(layout) {
        for (const auto& [name, array] : state.parameters) layout.get(name);
        for (std::uint32_t group = 0; group < layout.groups().size(); ++group) add_group(group);
    }

    std::vector<std::pair<Key, std::vector<OutgoingArray>>> all;

private:
    void add_group(std::uint32_t group) {
        add_arrays(group, v1::STATE_KIND_PARAMETERS, "", [this](const LayoutParameter& parameter) -> const StateArray* {
            const StateArray* array = found(state_.parameters, parameter.name);
            return array && array->shape == parameter.shape ? array : nullptr;
        });
        for (const std::string& slot : names(group, state_.slots)) {
            add_arrays(group, v1::STATE_KIND_SLOT, slot, [&](const LayoutParameter& parameter) {
                const auto* slots = found(state_.slots, parameter.name);
                return slots ? found(*slots, slot) : nullptr;
            });
        }
        for (const std::string& scalar : names(group, state_.scalars)) {
            add_numbers(group, v1::STATE_KIND_SCALAR, scalar, [&](const LayoutParameter& parameter) {
                const auto* scalars = found(state_.scalars, parameter.name);
                return scalars ? found(*scalars, scalar) : nullptr;
            });
        }
        add_numbers(group, v1::STATE_KIND_STEPS, "",
                    [this](const LayoutParameter& parameter) { return found(state_.steps, parameter.name); });
    }

    template <class Find>
    void add_arrays(std::uint32_t group, int kind, const std::string& name, const Find& find) {
        std::vector<OutgoingArray> parts;
        std::uint64_t begin = 0;
        for (const std::uint32_t member : layout_.groups()[group].members) {
            const LayoutParameter& parameter = layout_.parameters()[member];
            const DType dtype = state_dtype(parameter.dtype);
            const StateArray* array = find(parameter);
            if (!array || array->dtype != dtype ||
                array->bytes.size() != count_elements(array->shape) * element_bytes(dtype)) {
                refuse(name.empty() ? "the parameter" : "slot '" + name + "'", parameter);
            }
            parts.push_back(
                {group, begin, {dtype, array->bytes.data(), array->bytes.size() / element_bytes(dtype)}, dtype});
            begin += array->bytes.size();
        }
        all.emplace_back(Key(group, kind, name), std::move(parts));
    }

    template <class Find>
    void add_numbers(std::uint32_t group, int kind, const std::string& name, const Find& find) {
        std::vector<OutgoingArray> parts;
        std::uint64_t begin = 0;
        for (const std::uint32_t member : layout_.groups()[group].members) {
            const LayoutParameter& parameter = layout_.parameters()[member];
            const auto* number = find(parameter);
            if (!number) refuse(name.empty() ? "the steps" : "scalar '" + name + "'", parameter);
            parts.push_back({group, begin, {DType::float64, number, 1}, DType::float64});  // 8 bytes, of either type
            begin += sizeof *number;
        }
        all.emplace_back(Key(group, kind, name), std::move(parts));
    }

    [[noreturn]] static void refuse(const std::string& what, const LayoutParameter& parameter) {
        fail(ErrorReason::invalid_value,
             "state: " + what + " of '" + parameter.name + "' is missing or of another type or shape, expected " +
                 name_of(state_dtype(parameter.dtype)) + " for a parameter of shape " + in_words(parameter.shape) +
                 "; give the state of a run with the same parameters and optimizer");
    }

    /// The names of slots or scalars that the group's first parameter has; the others are then looked up.
    template <class M>
    std::vector<std::string> names(std::uint32_t group, const M& by_parameter) const {
        std::set<std::string> names;
        for (const std::uint32_t member : layout_.groups()[group].members) {
            const auto* values = found(by_parameter, layout_.parameters()[member].name);
            if (!values) continue;
            for (const auto& [name, value] : *values) names.insert(name);
        }
        return {names.begin(), names.end()};
    }

    template <class M>
    static const typename M::mapped_type* found(const M& map, const std::string& name) {
        const auto at = map.find(name);
        return at == map.end() ? nullptr : &at->second;
    }

    const State& state_;
    const Layout& layout_;
};

}  // namespace

State get_state(Line& line, const std::string& run, const Layout& layout) {
    v1::GetStateRequest request;
    request.set_run(run);
    v1::GetStateResponse response;
    std::optional<StatePieces> pieces;
    collect(
        line, method::get_state, request, response, [&] { pieces.emplace(layout); }, [&] { pieces->add(response); },
        "run '" + run + "': get_state");
    return pieces->state();
}

v1::Run set_state(Line& line, const std::string& run, const Layout& layout, const State& state,
                  std::optional<std::uint64_t> expected_version) {
    const StateParts parts(state, layout);
    v1::SetStateRequest request;
    std::size_t at = 0;
    std::optional<Packer> packer;
    bool begun = false;
    const auto start = [&] {
        at = 0;
        packer.reset();
        begun = false;
    };
    const auto next = [&]() -> const v1::SetStateRequest* {
        request.Clear();
        if (!begun) {
            begun = true;
            request.set_run(run);
            if (expected_version) request.set_expected_version(*expected_version);
            request.mutable_header()->set_version(state.version);
            request.mutable_header()->set_samples(state.samples);
            return &request;
        }
        for (; at < parts.all.size(); ++at, packer.reset()) {
            const auto& [key, arrays] = parts.all[at];
            if (!packer) packer.emplace(arrays);
            std::vector<Piece> pieces;
            if (!packer->next(pieces)) continue;
            for (const Piece& piece : pieces) {
                v1::StateRange& message = *request.add_ranges();
                message.set_kind(static_cast<v1::StateKind>(std::get<1>(key)));
                message.set_name(std::get<2>(key));
                piece.write(*message.mutable_range());
            }
            return &request;
        }
        return nullptr;
    };
    v1::SetStateResponse response;
    deliver(line, method::set_state, start, next, response, "run '" + run + "': set_state");
    return response.run();
}

}  // namespace stepwell
