// SPDX-License-Identifier: MIT
#include "kernels/error_feedback.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/limits.h"

namespace pycomm {
namespace {

constexpr size_t kPiece = kFeedbackElements;

void add(float* target, const float* values, const float* more, size_t count) {
  for (size_t i = 0; i < count; ++i) target[i] = values[i] + more[i];
}

// after = wanted - got; where that is not finite: before.
void keep_loss(const float* wanted, const float* got, Residual residual, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float loss = wanted[i] - got[i];
    residual.after[i] = std::fabs(loss) <= FLT_MAX ? loss : residual.before[i];
  }
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
  float wanted[kPiece], got[kPiece];
  for (size_t done = 0; done < count; done += kPiece) {
    const size_t part = std::min(kPiece, count - done);
    const Residual here = at(residual, done);
    std::byte* encoded = out + codec.wire_bytes(done);
    add(wanted, values + done, here.before, part);
    codec.encode(wanted, encoded, part);
    codec.decode(encoded, got, part);
    keep_loss(wanted, got, here, part);
  }
}

void reduce_with_residual(const Codec& codec, float* target, const std::byte* const* encoded,
                          const float* const* plain, int source_count, size_t count, int divisor,
                          Residual residual, std::byte* out) {
  PYCOMM_ASSERT(source_count >= 1, source_count);
  std::vector<const std::byte*> encodings(source_count);
  std::vector<const float*> plains(source_count);
  float wanted[kPiece];
  for (size_t done = 0; done < count; done += kPiece) {
    const size_t part = std::min(kPiece, count - done), bytes = codec.wire_bytes(done);
    for (int k = 0; k < source_count; ++k) {
      encodings[k] = encoded[k] ? encoded[k] + bytes : nullptr;
      plains[k] = encoded[k] ? nullptr : plain[k] + done;
    }
    float* sum = target + done;
    codec.reduce(sum, encodings.data(), plains.data(), source_count, part, divisor);
    const Residual here = at(residual, done);
    if (here.before) {
      add(sum, sum, here.before, part);
      std::memcpy(wanted, sum, part * sizeof(float));
    }
    codec.round_trip(sum, out + bytes, part);
    if (here.before) keep_loss(wanted, sum, here, part);
  }
}

}  // namespace pycomm
