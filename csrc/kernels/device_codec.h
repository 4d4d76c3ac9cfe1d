// SPDX-License-Identifier: MIT
// The narrow wire formats of codec.h on a device: what is asked of DeviceKernels::encode and
// sum_encoded.
//
// Values; addresses are the device's, arrays of addresses host memory that is read before a launch
// returns. Floats and encodings may lie anywhere; ranges must not overlap unless said so.
#pragma once

#include <cstddef>

#include "base/wire.h"

namespace pycomm {

inline constexpr int kCodecSourcesMax = 8;

// out = the encoding of in[i] * scale, which is finite. `decoded`, if given, gets what the encoding
// decodes to, and may be `in`: Codec::round_trip.
struct EncodeTask {
  Wire wire = Wire::bf16;
  const float* in = nullptr;
  void* out = nullptr;
  size_t count = 0;
  float scale = 1;
  float* decoded = nullptr;
};

// target[i] = the sum over the sources, in order, in float32, times `factor` or over `divisor`: one
// of the two is 1. Source k is encoded[k] or, where that is nullptr, plain[k]. `target` may be a
// plain source. With one encoded source this is Codec::decode, otherwise Codec::reduce.
struct SumEncodedTask {
  Wire wire = Wire::bf16;
  float* target = nullptr;
  const void* const* encoded = nullptr;
  const float* const* plain = nullptr;  // may be nullptr where all are encoded
  int source_count = 0;
  size_t count = 0;
  float factor = 1;
  int divisor = 1;
};

}  // namespace pycomm
