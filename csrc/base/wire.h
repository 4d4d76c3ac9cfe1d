// SPDX-License-Identifier: MIT
// What float32 elements travel as between ranks: plain, or in a narrow format.
//
// Plain values with stable numeric codes, since they travel in frame headers. The formats
// themselves are described in kernels/codec.h. Constants and pure functions: any thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace pycomm {

enum class Wire : uint8_t { fp32, bf16, fp16s, int8, int4 };
inline constexpr int kWireCount = 5;

std::string_view name_of(Wire wire);

// Throws UsageError for any other text.
Wire wire_from(std::string_view name);

}  // namespace pycomm
