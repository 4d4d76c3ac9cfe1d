// SPDX-License-Identifier: MIT
// The legs of hierarchical collectives: see hierarchy.h.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>

#include "base/limits.h"
#include "torch/hierarchy.h"

namespace pycomm {
namespace {

at::ScalarType scalar_of(DType dtype) {
  switch (dtype) {
    case DType::uint8:
      return at::kByte;
    case DType::int8:
      return at::kChar;
    case DType::int32:
      return at::kInt;
    case DType::int64:
      return at::kLong;
    case DType::float16:
      return at::kHalf;
    case DType::bfloat16:
      return at::kBFloat16;
    case DType::float32:
      return at::kFloat;
    default:
      return at::kDouble;
  }
}

c10d::ReduceOp op_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::product:
      return c10d::ReduceOp::PRODUCT;
    case ReduceOp::min:
      return c10d::ReduceOp::MIN;
    case ReduceOp::max:
      return c10d::ReduceOp::MAX;
    default:
      return c10d::ReduceOp::SUM;  // of avg: the division comes once, at the end
  }
}

// What is only moved: any type of the size will do, and every backend has these. Larger elements
// count several times.
at::ScalarType carrier_of(size_t element_bytes) {
  switch (element_bytes) {
    case 1:
      return at::kByte;
    case 2:
      return at::kHalf;
    case 4:
      return at::kInt;
    default:
      return at::kLong;
  }
}

// Elements of one dtype on one device.
struct Kind {
  at::ScalarType scalar;
  c10::Device where;
  int64_t times = 1;  // elements of `scalar` for each of the operation's

  at::Tensor view(const Region& region) const {
    return at::for_blob(region.data, {static_cast<int64_t>(region.count) * times})
        .options(options())
        .target_device(where)
        .make_tensor();
  }
  at::Tensor scratch(int64_t count) const { return at::empty({count}, options()); }
  at::TensorOptions options() const { return at::TensorOptions().dtype(scalar).device(where); }
};

class Legs {
 public:
  Legs(const HostLayout& layout, Hierarchy::BackendPtr local, Hierarchy::BackendPtr between,
       const DeviceTensors& wanted, Kind kind, std::chrono::milliseconds timeout)
      : layout_(layout),
        local_(std::move(local)),
        between_(std::move(between)),
        wanted_(wanted),
        kind_(kind),
        timeout_(timeout),
        hosts_(layout.host_count()),
        mates_(static_cast<int>(layout.mates().size())) {}

  // Which half was called last.
  bool was_local() const { return was_local_; }

  void all_reduce() {
    const at::Tensor whole = kind_.view(wanted_.work.front());
    const int64_t count = whole.numel();
    const bool shared = static_cast<size_t>(count) * whole.itemsize() >= kSharedBytesMin;
    const int64_t share = mates_ == 1 || shared ? count / mates_ : 0;
    const int64_t even = share * mates_;
    if (share)
      reduce_shares(whole.narrow(0, 0, even), whole.narrow(0, share * layout_.local, share));
    if (even < count) reduce_by_one(whole.narrow(0, even, count - even));
  }

  void reduce_scatter() {
    const auto blocks = static_cast<size_t>(layout_.world_size);
    at::Tensor output = kind_.view(wanted_.work[blocks]);
    const int64_t count = output.numel();
    at::Tensor input = in_order();
    const bool copied = !input.defined();
    if (copied) {
      input = kind_.scratch(count * layout_.world_size);
      at::_foreach_copy_(ordered(input, count), by_place());
    }
    at::Tensor mine = input;
    if (mates_ > 1) {
      // Users' inputs stay as they are.
      mine = copied ? input.narrow(0, layout_.local * hosts_ * count, hosts_ * count)
                    : kind_.scratch(hosts_ * count);
      reduce_scatter(on_host(), mine, input);
    }
    reduce_scatter(across(), output, mine);
    finish(output);
  }

  void all_gather() {
    const at::Tensor input = kind_.view(wanted_.work[static_cast<size_t>(layout_.world_size)]);
    const int64_t count = input.numel();
    const at::Tensor direct = in_order();
    const at::Tensor all = direct.defined() ? direct : kind_.scratch(count * layout_.world_size);
    at::Tensor mine = all.narrow(0, layout_.local * hosts_ * count, hosts_ * count);
    all_gather(across(), mine, input);
    if (mates_ > 1) all_gather(on_host(), all, mine);
    if (!direct.defined()) at::_foreach_copy_(by_place(), ordered(all, count));
  }

 private:
  c10d::Backend& on_host() {
    was_local_ = true;
    return *local_;
  }
  c10d::Backend& across() {
    was_local_ = false;
    return *between_;
  }
  // The current stream waits. No work: the call was on that stream.
  static void after(const c10::intrusive_ptr<c10d::Work>& work) {
    if (work) work->wait();
  }

  void reduce_shares(at::Tensor whole, at::Tensor mine) {
    if (mates_ > 1) reduce_scatter(on_host(), mine, whole);
    all_reduce(mine);
    finish(mine);
    if (mates_ > 1) all_gather(on_host(), whole, mine);
  }

  void reduce_by_one(const at::Tensor& tensor) {
    std::vector<at::Tensor> one{tensor};
    c10d::ReduceOptions reduce;
    reduce.reduceOp = op_of(wanted_.op);
    reduce.asyncOp = false;
    reduce.timeout = timeout_;
    after(on_host().reduce(one, reduce));
    if (layout_.local == 0) {
      all_reduce(tensor);
      finish(tensor);
    }
    c10d::BroadcastOptions broadcast;
    broadcast.asyncOp = false;
    broadcast.timeout = timeout_;
    after(on_host().broadcast(one, broadcast));
  }

  void all_reduce(const at::Tensor& tensor) {
    std::vector<at::Tensor> one{tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = op_of(wanted_.op);
    options.asyncOp = false;
    options.timeout = timeout_;
    after(across().allreduce(one, options));
  }

  void reduce_scatter(c10d::Backend& half, at::Tensor output, at::Tensor input) {
    c10d::ReduceScatterOptions options;
    options.reduceOp = op_of(wanted_.op);
    options.asyncOp = false;
    options.timeout = timeout_;
    after(half._reduce_scatter_base(output, input, options));
  }

  void all_gather(c10d::Backend& half, at::Tensor output, at::Tensor input) {
    c10d::AllgatherOptions options;
    options.asyncOp = false;
    options.timeout = timeout_;
    after(half._allgather_base(output, input, options));
  }

  void finish(const at::Tensor& tensor) {
    if (wanted_.op == ReduceOp::avg) tensor.div_(layout_.world_size);
  }

  // Blocks of all ranks in the order in which the halves want them: by place on the host, then by
  // host.
  std::vector<at::Tensor> by_place() const {
    std::vector<at::Tensor> blocks;
    for (int place = 0; place < mates_; ++place) {
      for (const auto& host : layout_.hosts) {
        const auto rank = static_cast<size_t>(host[static_cast<size_t>(place)]);
        blocks.push_back(kind_.view(wanted_.work[rank]));
      }
    }
    return blocks;
  }
  std::vector<at::Tensor> ordered(const at::Tensor& all, int64_t count) const {
    std::vector<at::Tensor> blocks;
    for (int i = 0; i < layout_.world_size; ++i) blocks.push_back(all.narrow(0, i * count, count));
    return blocks;
  }
  // All blocks as one tensor, where they lie in that order already; else undefined.
  at::Tensor in_order() const {
    Region all = wanted_.work[static_cast<size_t>(layout_.hosts[0][0])];
    const size_t bytes = all.count * size_of(wanted_.dtype);
    const std::byte* next = all.data;
    for (int place = 0; place < mates_; ++place) {
      for (const auto& host : layout_.hosts) {
        const auto rank = static_cast<size_t>(host[static_cast<size_t>(place)]);
        if (wanted_.work[rank].data != next) return {};
        next += bytes;
      }
    }
    all.count *= static_cast<size_t>(layout_.world_size);
    return kind_.view(all);
  }

  const HostLayout& layout_;
  const Hierarchy::BackendPtr local_, between_;
  const DeviceTensors& wanted_;
  const Kind kind_;
  const std::chrono::milliseconds timeout_;
  const int hosts_, mates_;
  bool was_local_ = true;
};

}  // namespace

void Hierarchy::enqueue(const DeviceTensors& wanted, std::chrono::milliseconds timeout) {
  const bool moves = wanted.collective == Collective::all_gather;
  const size_t bytes = size_of(wanted.dtype);
  const Kind kind{moves ? carrier_of(bytes) : scalar_of(wanted.dtype), where_,
                  moves ? std::max<int64_t>(1, static_cast<int64_t>(bytes / sizeof(int64_t))) : 1};
  const bool some = std::any_of(wanted.work.begin(), wanted.work.end(),
                                [](const Region& region) { return region.count > 0; });
  if (!some) return;
  const at::NoGradGuard no_grad;
  const auto [local, between] = halves();
  Legs legs(layout_, local, between, wanted, kind, timeout);
  try {
    switch (wanted.collective) {
      case Collective::all_reduce:
        return legs.all_reduce();
      case Collective::reduce_scatter:
        return legs.reduce_scatter();
      default:
        return legs.all_gather();
    }
  } catch (const std::exception& error) {
    throw CommError(explain(error, legs.was_local()));
  }
}

}  // namespace pycomm
