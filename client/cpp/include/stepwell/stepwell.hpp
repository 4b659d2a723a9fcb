/// Stepwell's client for C++17: all of it but throwing.hpp.
///
///     auto client = stepwell::connect("127.0.0.1:50051");
///     auto run = client->create_run("mnist", {{"w", {784, 10}, w}, {"b", {10}, b}}, spec);
///     auto parameters = run->step({{"w", gw}, {"b", gb}});
///     if (!parameters) std::cerr << parameters.error().message << "\n";
///
/// Every call gives a Result: a value, or an error with its reason, a message and details. Nothing throws.
#pragma once

#include "stepwell/arrays.hpp"
#include "stepwell/client.hpp"
#include "stepwell/descriptions.hpp"
#include "stepwell/errors.hpp"
#include "stepwell/run.hpp"
#include "stepwell/span.hpp"
#include "stepwell/spec.hpp"
#include "stepwell/values.hpp"
