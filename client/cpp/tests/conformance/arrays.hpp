/// Arrays, as cases tell them and as the client takes them.
#pragma once

#include <cstddef>
#include <stepwell/stepwell.hpp>
#include <string>
#include <vector>

#include "json.hpp"

namespace conformance {

/// A type of elements by its name; throws CaseFailed.
stepwell::DType dtype_of(const Json& name);
stepwell::Shape shape_of(const Json& array);
/// The elements that an array tells, each rounded to its type: to nearest, half way to even.
std::vector<double> rounded(const Json& array);
/// A number as the type would hold it.
double round_to(stepwell::DType dtype, double value);

/// Elements in memory of their own.
struct OwnedArray {
    explicit OwnedArray(const Json& array);
    OwnedArray(stepwell::DType dtype, const std::vector<double>& values);

    stepwell::Elements view() const { return {dtype, bytes.data(), bytes.size() / element_bytes(dtype)}; }

    stepwell::DType dtype;
    stepwell::Shape shape;
    std::vector<std::byte> bytes;
};

/// Elements as an array of a case.
Json json_of(const stepwell::Elements& elements, const stepwell::Shape& shape);

}  // namespace conformance
