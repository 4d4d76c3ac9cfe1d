// SPDX-License-Identifier: MIT
// What one CPU level offers for one wire format: the functions behind Codec, see codec.h.
//
// Constants and pure functions: any thread.
#pragma once

#include <cstddef>

#include "base/wire.h"

namespace pycomm {

struct CodecSources {
  const std::byte* const* encoded;
  const float* const* plain;
  int count;
};

struct CodecResidual {
  const float* before;
  float* after;
};

struct CodecKernels {
  void (*encode)(const float* in, char* out, size_t count, float scale);
  void (*decode)(const char* in, float* out, size_t count, float scale);
  void (*round_trip)(float* inout, char* out, size_t count);
  void (*feedback)(const float* values, const CodecResidual& residual, char* out, float* decoded,
                   size_t count);
  void (*reduce)(float* target, const CodecSources& sources, size_t count, int divisor);
};

}  // namespace pycomm
