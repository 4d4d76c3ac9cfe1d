// SPDX-License-Identifier: MIT
// Which gradients travel together: a pure function from sizes, dtypes, devices and an order of
// readiness to buckets. All ranks that give the same input get the same buckets, so no messages are
// needed to agree. Any thread.
#pragma once

#include <cstddef>
#include <vector>

#include "base/dtype.h"

namespace pycomm {

struct Parameter {
  size_t bytes = 0;
  DType dtype = DType::float32;
  int device = -1;  // -1: CPU
  bool operator==(const Parameter&) const = default;
};

struct Bucket {
  DType dtype = DType::float32;
  int device = -1;
  size_t bytes = 0;
  std::vector<int> parameters;  // indices, in order of readiness
};

// Walks the parameters in `order` (a permutation of their indices) and fills one open bucket for
// each (dtype, device); a bucket closes with the parameter that brings it to its limit, so that no
// parameter is cut. The first bucket to close has the smaller limit `first_bytes`, so that
// communication starts early (as c10d's reducer does). Buckets come in the order in which they are
// complete; those still open at the end follow, the one begun first in front. A parameter larger
// than the limit gets company only from those already waiting in its bucket. Throws UsageError when
// `order` is not a permutation or a limit is zero.
std::vector<Bucket> assign_buckets(const std::vector<Parameter>& parameters,
                                   const std::vector<int>& order, size_t first_bytes,
                                   size_t bucket_bytes);

}  // namespace pycomm
