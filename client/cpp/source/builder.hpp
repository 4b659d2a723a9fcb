/// How the library fills Arrays.
#pragma once

#include <utility>

#include "stepwell/arrays.hpp"

namespace stepwell {

struct Arrays::Builder {
    Arrays arrays;

    void add(Array array) {
        arrays.places_.emplace(array.name, arrays.arrays_.size());
        arrays.arrays_.push_back(std::move(array));
    }
    void add_rows(RowValues rows) { arrays.rows_.push_back(std::move(rows)); }
    void own(std::unique_ptr<std::byte[]> buffer) { arrays.buffers_.push_back(std::move(buffer)); }
    Arrays unchanged() {
        arrays.unchanged_ = true;
        return std::move(arrays);
    }
};

}  // namespace stepwell
