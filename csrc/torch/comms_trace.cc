// SPDX-License-Identifier: MIT
#include "torch/comms_trace.h"

#include <ATen/core/ivalue_inl.h>

#include <torch/csrc/distributed/c10d/ParamCommsUtils.hpp>
#include <tuple>

namespace pycomm {
namespace {

int64_t elements(const std::vector<at::Tensor>& tensors) {
  int64_t sum = 0;
  for (const auto& tensor : tensors) sum += tensor.numel();
  return sum;
}

// Not all of torch 2.11 to 2.15 have the last argument and setSequenceInfo(); a template, so that
// what the installed one lacks is not looked at.
template <class Info>
std::shared_ptr<Info> debug_info(const TracedCall& call, const std::vector<at::Tensor>& inputs,
                                 const std::vector<at::Tensor>& outputs) {
  const auto& example = inputs.empty() ? outputs : inputs;
  const auto make = [&](auto... more) -> std::shared_ptr<Info> {
    return std::make_shared<Info>(
        std::make_tuple(call.group_name, call.group_desc), call.rank, std::string(call.collective),
        elements(inputs), elements(outputs), example.empty() ? at::kByte : example[0].scalar_type(),
        call.input_splits, call.output_splits, -1, -1, call.world_size, more...);
  };
  std::shared_ptr<Info> info;
  if constexpr (requires(const Info& one) { one.isAsynchronizedOp(); }) {
    info = make(call.async);
  } else {
    info = make();
  }
  if constexpr (requires(Info& one) { one.setSequenceInfo(1, true); }) {
    info->setSequenceInfo(call.sequence, call.message);
  }
  return info;
}

}  // namespace

CommsTrace::CommsTrace(TracedCall call, const std::vector<at::Tensor>& inputs,
                       const std::vector<at::Tensor>& outputs)
    : info_(c10::DebugInfoKind::PARAM_COMMS_INFO,
            debug_info<torch::ParamCommsDebugInfo>(call, inputs, outputs)),
      event_(at::RecordScope::FUNCTION) {
  if (!event_.isActive()) return;
  // The order of the fields is that of torch's RECORD_PARAM_COMMS_DATA.
  fields_ = {
      c10::IValue(inputs),
      c10::IValue(std::make_tuple(call.sequence, call.message)),
      c10::IValue(std::make_tuple(call.group_name, call.group_desc)),
      static_cast<int64_t>(call.rank),
      call.collective,
      call.input_splits,
      call.output_splits,
      static_cast<int64_t>(-1),
      static_cast<int64_t>(-1),
      static_cast<int64_t>(call.world_size),
      call.async,
  };
  event_.before(at::kParamCommsCallName.c_str(),
                c10::ArrayRef<const c10::IValue>(fields_.data(), fields_.size()));
  if (event_.needsOutputs()) event_.setOutputs(std::vector<c10::IValue>(1, c10::IValue(outputs)));
}

}  // namespace pycomm
