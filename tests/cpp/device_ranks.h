// SPDX-License-Identifier: MIT
// A rank with a fake GPU, shared with the others or its own, and collectives on that GPU's memory
// whose results are known.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "device/fake_device.h"
#include "engine/device_group.h"
#include "groups.h"

namespace device_ranks {

using namespace groups;

inline void must(const Failure& failure) { CHECK(!failure, failure.text); }

// What one rank has. The group goes before its engine.
class Rank {
 public:
  Rank(Engine& engine, FakeOptions options, DeviceGroupOptions group_options = {})
      : engine_(engine),
        device_(std::move(options)),
        kernels_(host_kernels([this](void* stream, std::function<void()> work) {
          must(device_.enqueue_host(stream, std::move(work)));
        })) {
    group_ = DeviceGroup::connect(engine_, device_, *kernels_, group_options);
    must(device_.create_stream(false, &stream_));
  }

  FakeDevice& device() { return device_; }
  DeviceGroup& group() { return *group_; }
  Engine& engine() { return engine_; }
  void* stream() { return stream_; }
  int rank() const { return engine_.mesh().rank(); }
  int world_size() const { return engine_.mesh().world_size(); }

  OperationPtr launch(const Operation& wanted, void* stream) {
    Capture capture;
    must(device_.capture_of(stream, &capture));
    const auto call = group_->prepare(wanted, capture.id != 0);
    if (call.operation) engine_.submit(call.operation);
    must(group_->enqueue(call, stream));
    return call.operation;
  }
  OperationPtr launch(const Operation& wanted) { return launch(wanted, stream_); }
  // Until the engine and the stream have done with it.
  void finish(const OperationPtr& operation) {
    engine_.wait(*operation, {});
    must(device_.synchronize(stream_));
  }

 private:
  Engine& engine_;
  FakeDevice device_;
  const std::unique_ptr<DeviceKernels> kernels_;
  void* stream_ = nullptr;
  std::unique_ptr<DeviceGroup> group_;
};

// A collective over integers small enough for every dtype that is used with it, and what must come
// out of it, as bytes.
struct Case {
  Collective collective;
  ReduceOp op = ReduceOp::sum;
  size_t count = 0;
  int root = 0;
};

inline float input_value(const Case& one, int rank, int block, size_t index) {
  return static_cast<float>((static_cast<size_t>(rank) * 7 + static_cast<size_t>(block) * 3 +
                             index % 101 + static_cast<size_t>(one.root)) %
                            23);
}

inline float sum_of(const Case& one, int world_size, int block, size_t index) {
  float sum = input_value(one, 0, block, index);
  for (int rank = 1; rank < world_size; ++rank) {
    const float value = input_value(one, rank, block, index);
    if (one.op == ReduceOp::max) {
      sum = std::max(sum, value);
    } else {
      sum += value;
    }
  }
  return one.op == ReduceOp::avg ? sum / static_cast<float>(world_size) : sum;
}

// The tensors of one rank for one collective: float32, on the fake GPU, which is ordinary memory.
class Tensors {
 public:
  Tensors(const Case& one, int rank, int world_size)
      : case_(one), rank_(rank), world_size_(world_size), wanted_(std::make_shared<Operation>()) {
    wanted_->collective = one.collective;
    wanted_->op = one.op;
    wanted_->root = one.root;
    const bool roots = rank == one.root;
    switch (one.collective) {
      case Collective::all_gather:
        add(world_size, false, true);
        break;
      case Collective::gather:
        add(world_size, false, roots);
        break;
      case Collective::reduce_scatter:
        add(world_size, true, true);
        break;
      case Collective::scatter:
        add(world_size, true, roots);
        break;
      default:
        add(0, true, true);
    }
  }
  const Operation& wanted() const { return *wanted_; }

  // The input as it was at first.
  void fill() {
    for (size_t r = 0; r < data_.size(); ++r) {
      const int block = blocks_read_ ? static_cast<int>(r) : 0;
      const bool reads = blocks_read_ ? r + 1 < data_.size() : r + 1 == data_.size();
      for (size_t i = 0; i < data_[r].size(); ++i) {
        data_[r][i] = reads ? input_value(case_, rank_, block, i) : -1;
      }
    }
  }
  void check(const std::string& context) const {
    for (size_t r = 0; r < data_.size(); ++r) {
      for (size_t i = 0; i < data_[r].size(); ++i) {
        const float expected = expected_at(r, i);
        CHECK(data_[r][i] == expected, context, ", ", name_of(case_.collective), " of ",
              case_.count, " on rank ", rank_, ": element ", i, " of region ", r, " is ",
              data_[r][i], ", expected ", expected);
      }
    }
  }

 private:
  // `blocks` regions before the last; those of them that this rank has not are empty.
  void add(int blocks, bool read, bool has) {
    blocks_read_ = read && blocks > 0;
    for (int b = 0; b < blocks; ++b) data_.emplace_back(has ? case_.count : 0);
    data_.emplace_back(case_.count);
    for (auto& one : data_) {
      wanted_->work.push_back({reinterpret_cast<std::byte*>(one.data()), one.size()});
    }
    fill();
  }
  float expected_at(size_t region, size_t index) const {
    const bool last = region + 1 == data_.size();
    const auto block = static_cast<int>(region);
    switch (case_.collective) {
      case Collective::all_reduce:
        return sum_of(case_, world_size_, 0, index);
      case Collective::reduce:
        return rank_ == case_.root ? sum_of(case_, world_size_, 0, index)
                                   : input_value(case_, rank_, 0, index);
      case Collective::broadcast:
        return input_value(case_, case_.root, 0, index);
      case Collective::all_gather:
      case Collective::gather:
        return input_value(case_, last ? rank_ : block, 0, index);
      case Collective::reduce_scatter:
        return last ? sum_of(case_, world_size_, rank_, index)
                    : input_value(case_, rank_, block, index);
      default:  // scatter
        return last ? input_value(case_, case_.root, rank_, index)
                    : input_value(case_, rank_, block, index);
    }
  }

  const Case case_;
  const int rank_, world_size_;
  const OperationPtr wanted_;
  std::vector<std::vector<float>> data_;
  bool blocks_read_ = false;
};

inline constexpr Collective kServed[] = {
    Collective::all_reduce, Collective::broadcast,      Collective::reduce, Collective::all_gather,
    Collective::gather,     Collective::reduce_scatter, Collective::scatter};

inline constexpr DeviceMode kBothModes[] = {DeviceMode::stream, DeviceMode::kernel};

// Slots of 64 KiB, so that modest tensors go in pieces.
inline DeviceGroupOptions small_pool() { return {0, 1}; }

// In mode S all ranks share one GPU, in mode K each has its own.
inline FakeOptions seeded(int rank, int delay_us = 0, DeviceMode mode = DeviceMode::stream) {
  FakeOptions options;
  options.uuid = mode == DeviceMode::kernel ? str("GPU-", rank) : "GPU-one";
  options.seed = static_cast<uint64_t>(rank) + 20261121;
  options.delay_us = delay_us;
  return options;
}

}  // namespace device_ranks
