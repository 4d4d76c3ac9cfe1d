// SPDX-License-Identifier: MIT
#include "base/wire.h"

#include <array>
#include <string>

#include "base/error.h"

namespace pycomm {
namespace {

constexpr std::array<std::string_view, kWireCount> kNames{"fp32", "bf16", "fp16s", "int8", "int4"};

}  // namespace

// Codes arrive from the network, so an unknown one prints instead of reading past the table.
std::string_view name_of(Wire wire) {
  const auto index = static_cast<size_t>(wire);
  return index < kNames.size() ? kNames[index] : "unknown wire format";
}

Wire wire_from(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<Wire>(i);
  }
  throw UsageError(str("wire format '", name, "' is unknown; use fp32, bf16, fp16s, int8 or int4"));
}

}  // namespace pycomm
