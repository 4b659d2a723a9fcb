#include "stepwell/arrays.hpp"

#include "half.hpp"

namespace stepwell {

Half::Half(float value) : bits(to_half(value)) {}

Half::operator float() const { return from_half(bits); }

BFloat16::BFloat16(float value) : bits(to_bfloat16(value)) {}

BFloat16::operator float() const { return from_bfloat16(bits); }

std::size_t element_bytes(DType dtype) {
    switch (dtype) {
        case DType::float64:
            return 8;
        case DType::float32:
            return 4;
        default:
            return 2;
    }
}

const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return "float32";
        case DType::float64:
            return "float64";
        case DType::float16:
            return "float16";
        default:
            return "bfloat16";
    }
}

const Array* Arrays::find(std::string_view name) const {
    const auto found = places_.find(name);
    return found == places_.end() ? nullptr : &arrays_[found->second];
}

const RowValues* Arrays::find_rows(std::string_view table) const {
    for (const RowValues& rows : rows_) {
        if (rows.table == table) return &rows;
    }
    return nullptr;
}

std::vector<Output> Arrays::outputs() const {
    std::vector<Output> outputs;
    for (const Array& array : arrays_) {
        outputs.push_back({array.name, MutableElements(array.dtype, array.data, array.size)});
    }
    return outputs;
}

}  // namespace stepwell
