// SPDX-License-Identifier: MIT
#include "kernels/error_feedback.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/limits.h"

namespace pycomm {

void encode_with_residual(const Codec& codec, const float* values, Residual residual,
                          std::byte* out, size_t count) {
  if (!residual.before) return codec.encode(values, out, count);
  codec.encode_with_residual(values, residual.before, residual.after, out, nullptr, count);
}

void reduce_with_residual(const Codec& codec, float* target, const std::byte* const* encoded,
                          const float* const* plain, int source_count, size_t count, int divisor,
                          Residual residual, std::byte* out) {
  static_assert(kFeedbackElements % 256 == 0, "pieces must end where blocks do");
  PYCOMM_ASSERT(source_count >= 1, source_count);
  std::vector<const std::byte*> encodings(source_count);
  std::vector<const float*> plains(source_count);
  for (size_t done = 0; done < count; done += kFeedbackElements) {
    const size_t part = std::min(kFeedbackElements, count - done), bytes = codec.wire_bytes(done);
    for (int k = 0; k < source_count; ++k) {
      encodings[k] = encoded[k] ? encoded[k] + bytes : nullptr;
      plains[k] = encoded[k] ? nullptr : plain[k] + done;
    }
    float* sum = target + done;
    codec.reduce(sum, encodings.data(), plains.data(), source_count, part, divisor);
    if (residual.before) {
      codec.encode_with_residual(sum, residual.before + done, residual.after + done, out + bytes,
                                 sum, part);
    } else {
      codec.round_trip(sum, out + bytes, part);
    }
  }
}

}  // namespace pycomm
