/// The operations of README.md: arguments of a case in, what comes out as JSON.
#pragma once

#include <stepwell/stepwell.hpp>
#include <string>

#include "given.hpp"
#include "json.hpp"

namespace conformance {

using Told = stepwell::Result<Json>;
using ClientOperation = Told (*)(stepwell::Client&, Arguments& with);
using RunOperation = Told (*)(stepwell::Run&, Arguments& with);

/// Null where there is none of this name.
ClientOperation find_client_operation(const std::string& name);
RunOperation find_run_operation(const std::string& name);

/// What a result's value is told as, or its error.
template <class T, class Tell>
Told told(const stepwell::Result<T>& result, Tell&& tell) {
    if (!result.ok()) return result.error();
    return tell(result.value());
}

}  // namespace conformance
