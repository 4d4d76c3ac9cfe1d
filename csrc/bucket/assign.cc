// SPDX-License-Identifier: MIT
#include "bucket/assign.h"

#include <algorithm>

#include "base/error.h"

namespace pycomm {
namespace {

void check_order(const std::vector<int>& order, size_t count) {
  PYCOMM_USAGE(order.size() == count, "assign_buckets: the order has ", order.size(),
               " entries, expected one for each of ", count, " parameters");
  std::vector<bool> seen(count, false);
  for (const int index : order) {
    const bool fresh =
        index >= 0 && static_cast<size_t>(index) < count && !seen[static_cast<size_t>(index)];
    PYCOMM_USAGE(fresh, "assign_buckets: the order names parameter ", index,
                 " twice or beyond the last, expected a permutation of 0 to ", count - 1);
    seen[static_cast<size_t>(index)] = true;
  }
}

}  // namespace

std::vector<Bucket> assign_buckets(const std::vector<Parameter>& parameters,
                                   const std::vector<int>& order, size_t first_bytes,
                                   size_t bucket_bytes) {
  PYCOMM_USAGE(first_bytes > 0 && bucket_bytes > 0, "assign_buckets: got limits of ", first_bytes,
               " and ", bucket_bytes, " bytes, expected both positive");
  check_order(order, parameters.size());
  std::vector<Bucket> complete;
  std::vector<Bucket> open;  // in the order in which they were begun
  for (const int index : order) {
    const Parameter& parameter = parameters[static_cast<size_t>(index)];
    auto bucket = std::find_if(open.begin(), open.end(), [&](const Bucket& one) {
      return one.dtype == parameter.dtype && one.device == parameter.device;
    });
    if (bucket == open.end()) {
      bucket = open.insert(open.end(), Bucket{parameter.dtype, parameter.device, 0, {}});
    }
    bucket->bytes += parameter.bytes;
    bucket->parameters.push_back(index);
    if (bucket->bytes < (complete.empty() ? first_bytes : bucket_bytes)) continue;
    complete.push_back(std::move(*bucket));
    open.erase(bucket);
  }
  complete.insert(complete.end(), open.begin(), open.end());
  return complete;
}

}  // namespace pycomm
