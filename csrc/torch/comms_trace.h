// SPDX-License-Identifier: MIT
// What torch's profiler and its readers (Kineto traces, Holistic Trace Analysis, Chakra) learn of a
// call: the event "record_param_comms" with group, sequence number, element counts, dtype and split
// sizes. Made on the stack of the call, only while somebody profiles; the caller's thread only.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <string>
#include <vector>

namespace pycomm {

struct TracedCall {
  std::string group_name, group_desc;
  int rank = 0;
  int world_size = 0;
  std::string collective;  // "all_reduce"
  int64_t sequence = 0;
  bool message = false;  // send or recv
  bool async = true;
  std::vector<int64_t> input_splits, output_splits;
};

class CommsTrace {
 public:
  CommsTrace(TracedCall call, const std::vector<at::Tensor>& inputs,
             const std::vector<at::Tensor>& outputs);

 private:
  std::vector<c10::IValue> fields_;  // the event refers to them until it ends
  c10::DebugInfoGuard info_;
  at::RecordFunction event_;
};

}  // namespace pycomm
