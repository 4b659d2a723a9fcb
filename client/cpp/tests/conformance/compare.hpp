/// Whether what came is what a case expects.
#pragma once

#include <stepwell/errors.hpp>

#include "json.hpp"

namespace conformance {

/// How far a number may be from the expected one.
struct Tolerance {
    Tolerance() = default;
    /// Of a step: what `tolerance` says.
    explicit Tolerance(const Json& step);

    bool close(double got, double expected) const;

    double relative = 0, absolute = 0;
};

/// Throws CaseFailed with the place, what was got, and what was expected. names_among: the expected names need only be
/// among those that came.
void compare(const Json& got, const Json& expected, const Tolerance& tolerance = {}, bool names_among = false);

/// Throws CaseFailed where an error is not the expected one.
void check_error(const stepwell::Error& got, const Json& expected);

}  // namespace conformance
