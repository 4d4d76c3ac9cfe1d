// SPDX-License-Identifier: MIT
// The Backend's collectives, each from tensors to one operation. See backend.h.
#include "torch/backend.h"
#include "torch/sparse.h"

namespace pycomm {
namespace {

using Tensors = Backend::Tensors;

void check_one(Collective collective, const Tensors& tensors) {
  PYCOMM_USAGE(tensors.size() == 1, name_of(collective), ": got a list of ", tensors.size(),
               " tensors, expected one tensor per rank; call once for each, or the coalesced "
               "variant such as "
               "all_reduce_coalesced (requires non-empty tensor list of one tensor)");
  check_tensor(collective, tensors[0]);
}

// A list with one tensor for each rank, all of `like`'s dtype.
void check_list(Collective collective, const Tensors& list, int world_size, const at::Tensor& like,
                const char* what) {
  PYCOMM_USAGE(static_cast<int>(list.size()) == world_size, name_of(collective), ": got ",
               list.size(), " ", what, " tensors, expected one for each of ", world_size,
               " ranks; make the list as long as the group (invalid tensor list size)");
  for (const auto& tensor : list) {
    check_tensor(collective, tensor);
    check_same_dtype(collective, tensor, like);
  }
}

void check_block(Collective collective, const at::Tensor& block, const at::Tensor& input,
                 const char* what) {
  PYCOMM_USAGE(block.numel() == input.numel(), name_of(collective), ": this rank's ", what, " is ",
               describe(block), " but should hold ", describe(input),
               ", expected the same number of elements; resize one of them (invalid tensor size)");
}

// What this rank keeps for itself goes nowhere, so no peer would notice that its ends differ.
void check_own_split(const at::Tensor& output, const at::Tensor& input,
                     const std::vector<int64_t>& output_sizes,
                     const std::vector<int64_t>& input_sizes, int rank, int world_size) {
  const auto elements = [&](const at::Tensor& tensor, const std::vector<int64_t>& sizes,
                            const char* what) -> int64_t {
    PYCOMM_USAGE(tensor.dim() > 0, "all_to_all: got the ", what, " ", describe(tensor),
                 " without dimensions, expected rows along dimension 0; call reshape(1) on it");
    if (tensor.numel() == 0) return 0;
    const auto own = static_cast<size_t>(rank);
    const int64_t rows = own < sizes.size() ? sizes[own] : tensor.size(0) / world_size;
    return rows * (tensor.numel() / tensor.size(0));
  };
  const auto out = elements(output, output_sizes, "output");
  const auto in = elements(input, input_sizes, "input");
  PYCOMM_USAGE(
      out == in, "all_to_all: rank ", rank, " keeps ", in,
      " elements of its own input but has room for ", out,
      ", expected as many; give it the same split size in both lists (invalid tensor size)");
}

}  // namespace

Backend::WorkPtr Backend::broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) {
  const SequenceSlot slot(*this);
  check_one(Collective::broadcast, tensors);
  OperationBuilder builder(Collective::broadcast, opts.timeout);
  builder.set_root(opts.rootRank, getSize());
  const bool root = opts.rootRank == getRank();
  builder.add(tensors[0], root, !root);
  return launch({c10d::OpType::BROADCAST, "pycomm:broadcast", opts.asyncOp}, builder, tensors,
                tensors);
}

std::shared_ptr<Operation> Backend::all_reduce_one(const at::Tensor& tensor,
                                                   const c10d::ReduceOp& op,
                                                   std::chrono::milliseconds timeout) {
  check_tensor(Collective::all_reduce, tensor);
  OperationBuilder builder(Collective::all_reduce, timeout);
  builder.set_op(op, tensor);
  builder.add(tensor, true, true);
  return builder.take(getRank());
}

Backend::WorkPtr Backend::allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) {
  if (tensors.size() == 1 && tensors[0].is_sparse()) return allreduce_sparse(tensors, opts);
  const SequenceSlot slot(*this);
  check_one(Collective::all_reduce, tensors);
  std::vector<std::shared_ptr<Operation>> operations{
      all_reduce_one(tensors[0], opts.reduceOp, opts.timeout)};
  return launch({c10d::OpType::ALLREDUCE, "pycomm:all_reduce", opts.asyncOp}, std::move(operations),
                tensors, tensors);
}

Backend::WorkPtr Backend::allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& opts) {
  const SequenceSlot slot(*this);
  PYCOMM_USAGE(tensors.size() == 1 && tensors[0].is_sparse(),
               "all_reduce: expected one sparse COO tensor");
  return launch({c10d::OpType::_ALLREDUCE_SPARSE, "pycomm:all_reduce", opts.asyncOp},
                sparse_all_reduce(tensors[0], opts.reduceOp, opts.timeout, getRank(), getSize()),
                tensors, tensors);
}

Backend::WorkPtr Backend::allreduce_coalesced(Tensors& tensors,
                                              const c10d::AllreduceCoalescedOptions& opts) {
  const SequenceSlot slot(*this);
  PYCOMM_USAGE(!tensors.empty(),
               "all_reduce: got an empty list, expected tensors (requires non-empty tensor list)");
  std::vector<std::shared_ptr<Operation>> operations;
  for (const auto& tensor : tensors) {
    operations.push_back(all_reduce_one(tensor, opts.reduceOp, opts.timeout));
  }
  return launch({c10d::OpType::ALLREDUCE_COALESCED, "pycomm:all_reduce", opts.asyncOp},
                std::move(operations), tensors, tensors);
}

Backend::WorkPtr Backend::reduce(Tensors& tensors, const c10d::ReduceOptions& opts) {
  const SequenceSlot slot(*this);
  check_one(Collective::reduce, tensors);
  OperationBuilder builder(Collective::reduce, opts.timeout);
  builder.set_root(opts.rootRank, getSize());
  builder.set_op(opts.reduceOp, tensors[0]);
  builder.add(tensors[0], true, opts.rootRank == getRank());
  return launch({c10d::OpType::REDUCE, "pycomm:reduce", opts.asyncOp}, builder, tensors, tensors);
}

Backend::WorkPtr Backend::allgather(TensorLists& outputs, Tensors& inputs,
                                    const c10d::AllgatherOptions& opts) {
  const SequenceSlot slot(*this);
  check_one(Collective::all_gather, inputs);
  PYCOMM_USAGE(outputs.size() == 1, "all_gather: got ", outputs.size(),
               " output lists, expected one (requires non-empty tensor list)");
  check_list(Collective::all_gather, outputs[0], getSize(), inputs[0], "output");
  check_block(Collective::all_gather, outputs[0][static_cast<size_t>(getRank())], inputs[0],
              "output");
  OperationBuilder builder(Collective::all_gather, opts.timeout);
  for (const auto& output : outputs[0]) builder.add(output, false, true);
  builder.add(inputs[0], true, false);
  return launch({c10d::OpType::ALLGATHER, "pycomm:all_gather", opts.asyncOp}, builder, inputs,
                outputs[0]);
}

std::shared_ptr<Operation> Backend::all_gather_one(const at::Tensor& output,
                                                   const at::Tensor& input,
                                                   std::chrono::milliseconds timeout) {
  check_tensor(Collective::all_gather, input);
  check_tensor(Collective::all_gather, output);
  check_same_dtype(Collective::all_gather, output, input);
  PYCOMM_USAGE(
      output.numel() == input.numel() * getSize(), "all_gather: the output is ", describe(output),
      ", expected ", getSize(), " times the input ", describe(input), "; make it hold ",
      input.numel() * getSize(),
      " elements (output tensor size must be equal to world_size times input tensor size)");
  OperationBuilder builder(Collective::all_gather, timeout);
  builder.add_split(output, getSize(), false, true);
  builder.add(input, true, false);
  return builder.take(getRank());
}

Backend::WorkPtr Backend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                          const c10d::AllgatherOptions& opts) {
  const SequenceSlot slot(*this);
  std::vector<std::shared_ptr<Operation>> operations{all_gather_one(output, input, opts.timeout)};
  return launch({c10d::OpType::_ALLGATHER_BASE, "pycomm:all_gather", opts.asyncOp},
                std::move(operations), {input}, {output});
}

Backend::WorkPtr Backend::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                          const c10d::AllgatherOptions& opts) {
  const SequenceSlot slot(*this);
  PYCOMM_USAGE(!inputs.empty() && inputs.size() == outputs.size(), "all_gather: got ",
               inputs.size(), " inputs and ", outputs.size(),
               " outputs, expected as many of each, and some");
  std::vector<std::shared_ptr<Operation>> operations;
  for (size_t i = 0; i < inputs.size(); ++i) {
    operations.push_back(all_gather_one(outputs[i], inputs[i], opts.timeout));
  }
  return launch({c10d::OpType::COALESCED, "pycomm:all_gather", opts.asyncOp}, std::move(operations),
                inputs, outputs);
}

// Deprecated in torch and still called: outputs[rank][i] is what `rank` gave as its input i.
Backend::WorkPtr Backend::allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                                              const c10d::AllgatherOptions& opts) {
  const SequenceSlot slot(*this);
  PYCOMM_USAGE(!inputs.empty(),
               "all_gather: got no input tensors, expected some (requires "
               "non-empty tensor list)");
  PYCOMM_USAGE(static_cast<int>(outputs.size()) == getSize(), "all_gather: got ", outputs.size(),
               " output lists, expected one for each of ", getSize(),
               " ranks (invalid tensor list size)");
  std::vector<std::shared_ptr<Operation>> operations;
  Tensors flat;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensors blocks;
    for (const auto& list : outputs) {
      PYCOMM_USAGE(list.size() == inputs.size(), "all_gather: got ", list.size(),
                   " outputs in one list, expected as many as inputs, ", inputs.size(),
                   " (invalid tensor list size)");
      blocks.push_back(list[i]);
    }
    check_tensor(Collective::all_gather, inputs[i]);
    check_list(Collective::all_gather, blocks, getSize(), inputs[i], "output");
    check_block(Collective::all_gather, blocks[static_cast<size_t>(getRank())], inputs[i],
                "output");
    OperationBuilder builder(Collective::all_gather, opts.timeout);
    for (const auto& block : blocks) builder.add(block, false, true);
    builder.add(inputs[i], true, false);
    operations.push_back(builder.take(getRank()));
    flat.insert(flat.end(), blocks.begin(), blocks.end());
  }
  return launch({c10d::OpType::COALESCED, "pycomm:all_gather", opts.asyncOp}, std::move(operations),
                inputs, std::move(flat));
}

#ifdef C10D_BACKEND_HAS_RECONFIGURE
Backend::WorkPtr Backend::gather_single(at::Tensor& output, at::Tensor& input,
                                        const c10d::GatherOptions& opts) {
  const SequenceSlot slot(*this);
  check_tensor(Collective::gather, input);
  OperationBuilder builder(Collective::gather, opts.timeout);
  builder.set_root(opts.rootRank, getSize());
  const bool root = opts.rootRank == getRank();
  if (root) {
    check_tensor(Collective::gather, output);
    check_same_dtype(Collective::gather, output, input);
    PYCOMM_USAGE(output.numel() == input.numel() * getSize(), "gather: the output is ",
                 describe(output), ", expected ", getSize(), " times the input ", describe(input));
    builder.add_split(output, getSize(), false, true);
  } else {
    builder.add_empty(getSize());
  }
  builder.add(input, true, false);
  return launch({c10d::OpType::GATHER, "pycomm:gather", opts.asyncOp}, builder, {input},
                root ? Tensors{output} : Tensors{});
}
#endif

Backend::WorkPtr Backend::gather(TensorLists& outputs, Tensors& inputs,
                                 const c10d::GatherOptions& opts) {
  const SequenceSlot slot(*this);
  check_one(Collective::gather, inputs);
  OperationBuilder builder(Collective::gather, opts.timeout);
  builder.set_root(opts.rootRank, getSize());
  const bool root = opts.rootRank == getRank();
  PYCOMM_USAGE(root ? outputs.size() == 1 : outputs.empty(), "gather: got ", outputs.size(),
               " output lists on rank ", getRank(), ", expected ", root ? 1 : 0,
               "; only the root, rank ", opts.rootRank, ", gives outputs");
  if (root) {
    check_list(Collective::gather, outputs[0], getSize(), inputs[0], "output");
    for (const auto& output : outputs[0]) {
      check_block(Collective::gather, output, inputs[0], "output");
      builder.add(output, false, true);
    }
  } else {
    builder.add_empty(getSize());
  }
  builder.add(inputs[0], true, false);
  return launch({c10d::OpType::GATHER, "pycomm:gather", opts.asyncOp}, builder, inputs,
                root ? outputs[0] : Tensors{});
}

Backend::WorkPtr Backend::scatter(Tensors& outputs, TensorLists& inputs,
                                  const c10d::ScatterOptions& opts) {
  const SequenceSlot slot(*this);
  check_one(Collective::scatter, outputs);
  OperationBuilder builder(Collective::scatter, opts.timeout);
  builder.set_root(opts.rootRank, getSize());
  const bool root = opts.rootRank == getRank();
  PYCOMM_USAGE(root ? inputs.size() == 1 : inputs.empty(), "scatter: got ", inputs.size(),
               " input lists on rank ", getRank(), ", expected ", root ? 1 : 0,
               "; only the root, rank ", opts.rootRank, ", gives inputs");
  if (root) {
    check_list(Collective::scatter, inputs[0], getSize(), outputs[0], "input");
    for (const auto& input : inputs[0]) {
      check_block(Collective::scatter, input, outputs[0], "input");
      builder.add(input, true, false);
    }
  } else {
    builder.add_empty(getSize());
  }
  builder.add(outputs[0], false, true);
  return launch({c10d::OpType::SCATTER, "pycomm:scatter", opts.asyncOp}, builder,
                root ? inputs[0] : Tensors{}, outputs);
}

Backend::WorkPtr Backend::reduce_scatter(Tensors& outputs, TensorLists& inputs,
                                         const c10d::ReduceScatterOptions& opts) {
  const SequenceSlot slot(*this);
  check_one(Collective::reduce_scatter, outputs);
  PYCOMM_USAGE(inputs.size() == 1, "reduce_scatter: got ", inputs.size(),
               " input lists, expected one (requires non-empty tensor list)");
  check_list(Collective::reduce_scatter, inputs[0], getSize(), outputs[0], "input");
  check_block(Collective::reduce_scatter, outputs[0], inputs[0][static_cast<size_t>(getRank())],
              "output");
  OperationBuilder builder(Collective::reduce_scatter, opts.timeout);
  builder.set_op(opts.reduceOp, outputs[0]);
  for (const auto& input : inputs[0]) builder.add(input, true, false);
  builder.add(outputs[0], false, true);
  return launch({c10d::OpType::REDUCE_SCATTER, "pycomm:reduce_scatter", opts.asyncOp}, builder,
                inputs[0], outputs);
}

std::shared_ptr<Operation> Backend::reduce_scatter_one(const at::Tensor& output,
                                                       const at::Tensor& input,
                                                       const c10d::ReduceOp& op,
                                                       std::chrono::milliseconds timeout) {
  check_tensor(Collective::reduce_scatter, input);
  check_tensor(Collective::reduce_scatter, output);
  check_same_dtype(Collective::reduce_scatter, output, input);
  PYCOMM_USAGE(input.numel() == output.numel() * getSize(), "reduce_scatter: the input is ",
               describe(input), ", expected ", getSize(), " times the output ", describe(output),
               "; make it hold ", output.numel() * getSize(),
               " elements (input tensor must be the same size as output size times world size)");
  OperationBuilder builder(Collective::reduce_scatter, timeout);
  builder.set_op(op, output);
  builder.add_split(input, getSize(), true, false);
  builder.add(output, false, true);
  return builder.take(getRank());
}

Backend::WorkPtr Backend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                               const c10d::ReduceScatterOptions& opts) {
  const SequenceSlot slot(*this);
  std::vector<std::shared_ptr<Operation>> operations{
      reduce_scatter_one(output, input, opts.reduceOp, opts.timeout)};
  return launch({c10d::OpType::_REDUCE_SCATTER_BASE, "pycomm:reduce_scatter", opts.asyncOp},
                std::move(operations), {input}, {output});
}

Backend::WorkPtr Backend::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                          const c10d::ReduceScatterOptions& opts) {
  const SequenceSlot slot(*this);
  PYCOMM_USAGE(!inputs.empty() && inputs.size() == outputs.size(), "reduce_scatter: got ",
               inputs.size(), " inputs and ", outputs.size(),
               " outputs, expected as many of each, and some");
  std::vector<std::shared_ptr<Operation>> operations;
  for (size_t i = 0; i < inputs.size(); ++i) {
    operations.push_back(reduce_scatter_one(outputs[i], inputs[i], opts.reduceOp, opts.timeout));
  }
  return launch({c10d::OpType::COALESCED, "pycomm:reduce_scatter", opts.asyncOp},
                std::move(operations), inputs, outputs);
}

Backend::WorkPtr Backend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                        std::vector<int64_t>& output_sizes,
                                        std::vector<int64_t>& input_sizes,
                                        const c10d::AllToAllOptions& opts) {
  const SequenceSlot slot(*this);
  check_tensor(Collective::all_to_all, input);
  check_tensor(Collective::all_to_all, output);
  check_same_dtype(Collective::all_to_all, output, input);
  OperationBuilder builder(Collective::all_to_all, opts.timeout);
  builder.add_split(input, input_sizes, getSize(), true, false, "input");
  builder.add_split(output, output_sizes, getSize(), false, true, "output");
  check_own_split(output, input, output_sizes, input_sizes, getRank(), getSize());
  return launch(
      {c10d::OpType::ALLTOALL_BASE, "pycomm:all_to_all", opts.asyncOp, input_sizes, output_sizes},
      builder, {input}, {output});
}

Backend::WorkPtr Backend::alltoall(Tensors& outputs, Tensors& inputs,
                                   const c10d::AllToAllOptions& opts) {
  const SequenceSlot slot(*this);
  PYCOMM_USAGE(!inputs.empty(), "all_to_all: got no input tensors, expected one for each rank");
  check_list(Collective::all_to_all, inputs, getSize(), inputs[0], "input");
  check_list(Collective::all_to_all, outputs, getSize(), inputs[0], "output");
  const auto mine = static_cast<size_t>(getRank());
  check_block(Collective::all_to_all, outputs[mine], inputs[mine], "own output");
  OperationBuilder builder(Collective::all_to_all, opts.timeout);
  for (const auto& input : inputs) builder.add(input, true, false);
  for (const auto& output : outputs) builder.add(output, false, true);
  return launch({c10d::OpType::ALLTOALL, "pycomm:all_to_all", opts.asyncOp}, builder, inputs,
                outputs);
}

}  // namespace pycomm
