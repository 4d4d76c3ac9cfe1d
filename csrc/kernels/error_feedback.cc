// SPDX-License-Identifier: MIT
#include "kernels/error_feedback.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "kernels/reduce.h"

namespace pycomm {
namespace {

constexpr size_t kPiece = kFeedbackElements;

// By the kernels of reduce.h, which are compiled for wider vectors than this file.
void add(float* target, const float* a, const float* b, size_t count) {
  const void* sources[] = {a, b};
  ReduceTask task;
  task.target = target;
  task.sources = sources;
  task.source_count = 2;
  task.count = count;
  reduce(task);
}

bool all_finite(const float* values, size_t count) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    found |= (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent;
  }
  return !found;
}

// after = wanted - got; where that is not finite: before. `minus_got` is overwritten.
void keep_loss(const float* wanted, float* minus_got, Residual residual, size_t count) {
  float* loss = minus_got;
  add(loss, wanted, minus_got, count);
  if (!all_finite(loss, count)) {
    for (size_t i = 0; i < count; ++i) {
      if (!std::isfinite(loss[i])) loss[i] = residual.before[i];
    }
  }
  std::memcpy(residual.after, loss, count * sizeof(float));
}

Residual at(Residual residual, size_t offset) {
  if (!residual.before) return residual;
  return {residual.before + offset, residual.after + offset};
}

}  // namespace

void encode_with_residual(const Codec& codec, const float* values, Residual residual,
                          std::byte* out, size_t count) {
  static_assert(kPiece % 256 == 0, "pieces must end where blocks do");
  if (!residual.before) return codec.encode(values, out, count);
  float wanted[kPiece], minus_got[kPiece];
  for (size_t done = 0; done < count; done += kPiece) {
    const size_t part = std::min(kPiece, count - done);
    const Residual here = at(residual, done);
    std::byte* encoded = out + codec.wire_bytes(done);
    add(wanted, values + done, here.before, part);
    codec.encode(wanted, encoded, part);
    codec.decode(encoded, minus_got, part, -1);
    keep_loss(wanted, minus_got, here, part);
  }
}

void reduce_with_residual(const Codec& codec, float* target, const std::byte* const* encoded,
                          const float* const* plain, int source_count, size_t count, int divisor,
                          Residual residual, std::byte* out) {
  PYCOMM_ASSERT(source_count >= 1, source_count);
  std::vector<const std::byte*> encodings(source_count);
  std::vector<const float*> plains(source_count);
  float wanted[kPiece], minus_got[kPiece];
  for (size_t done = 0; done < count; done += kPiece) {
    const size_t part = std::min(kPiece, count - done), bytes = codec.wire_bytes(done);
    for (int k = 0; k < source_count; ++k) {
      encodings[k] = encoded[k] ? encoded[k] + bytes : nullptr;
      plains[k] = encoded[k] ? nullptr : plain[k] + done;
    }
    float* sum = target + done;
    codec.reduce(sum, encodings.data(), plains.data(), source_count, part, divisor);
    const Residual here = at(residual, done);
    if (!here.before) {
      codec.round_trip(sum, out + bytes, part);
      continue;
    }
    add(wanted, sum, here.before, part);
    codec.encode(wanted, out + bytes, part);
    codec.decode(out + bytes, sum, part);
    codec.decode(out + bytes, minus_got, part, -1);
    keep_loss(wanted, minus_got, here, part);
  }
}

}  // namespace pycomm
