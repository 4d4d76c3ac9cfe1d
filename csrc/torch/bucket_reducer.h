// SPDX-License-Identifier: MIT
// Averages the gradients of a model over the ranks of a group while backward goes on: the core of
// pycomm.DataParallel.
//
// Autograd tells of each gradient that is complete. When all gradients of a bucket are, the bucket
// goes out as one asynchronous all_reduce, in the same order on all ranks. A large gradient is not
// copied for that: it travels from where autograd has left it, which during a backward is the arena
// (arena_allocator.h). Small ones are packed into the bucket's flat memory, which lies there too,
// and param.grad becomes a view of it. At the end of backward, in a callback of the autograd
// engine, what is left goes out, everything is waited for, and one small all_reduce tells which
// parameters were used on any rank.
//
// Of a model on a device everything is packed, see bucket_device.h, and no thread waits for the
// device: the stream of whoever called backward does. What ranks tell each other of a backward goes
// through another group, since the host would wait behind the buckets in theirs.
//
// An exception within backward leaves other ranks waiting for buckets. The next forward of this
// rank sends zeros for what is missing and says so; ranks that did finish raise then.
//
// Any thread, one backward at a time; callers do not hold the GIL. Holds the groups' backends and
// the parameters; autograd holds it weakly.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "bucket/size_trial.h"
#include "torch/bucket_device.h"

namespace pycomm {

struct ReducerOptions {
  std::vector<std::string> names;  // of the parameters, for errors
  // Of gradients in a bucket; several are tried in the first steps, see size_trial.h.
  std::vector<size_t> bucket_bytes;
  // The sum is divided in the collective. False: each rank scales its own gradients first, which
  // rounds as torch's DDP does.
  bool average = true;
  // On a device: what float32 gradients travel as.
  std::optional<at::ScalarType> narrow = {};
};

class BucketReducer : public std::enable_shared_from_this<BucketReducer> {
 public:
  using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

  // Local. The parameters must be the same on all ranks, all on cpu or all on one device; attach()
  // comes next. `hosts`: the group in which ranks tell each other what they have used; the same as
  // `backend` on cpu, on a device one that fails when `backend` does.
  BucketReducer(BackendPtr backend, BackendPtr hosts, std::vector<at::Tensor> parameters,
                ReducerOptions options);
  ~BucketReducer();
  void attach();

  // Before a forward: ends what an exception has interrupted, of all reducers of the backend that
  // were in that backward. Collective then.
  void recover();
  // After a forward with these outputs. `reduce`: false within no_sync(). Throws UsageError when a
  // parameter has got another dtype, since autograd has then forgotten its hook.
  void arm(const std::vector<at::Tensor>& outputs, bool reduce);
  // Takes part in the backward of other ranks, without gradients. Collective.
  void shadow();
  // What divides the sum from now on, each rank scaling its own; 0: as at the beginning.
  void set_divisor(int divisor);
  // Parameters by bucket, in the order in which buckets go out.
  std::vector<std::vector<int>> buckets() const;
  // The size in use, and whether it stays.
  std::pair<size_t, bool> bucket_bytes() const;

 private:
  friend class BeginHook;
  friend class GradientHook;
  struct Gradient {
    at::Tensor parameter;
    const void* accumulator = nullptr;  // the node that has the hook
    size_t bucket = 0;
    at::Tensor view;    // in the bucket's flat memory; undefined: travels on its own
    size_t offset = 0;  // of the view, in bytes
    int expected = 1;   // how often one backward brings a part of it
    int brought = 0;
    bool used = false;      // since the last reduction, no_sync() included
    at::Tensor substitute;  // was sent for a gradient that did not come
    at::Tensor kept;        // an older gradient that `substitute` has displaced
  };
  struct Bucket {
    std::vector<int> parameters;
    at::Tensor flat;
    size_t waiting = 0;
    // Null until they go out. `small` is null, too, where one operation carries everything.
    c10::intrusive_ptr<c10d::Work> work, small;
    std::unique_ptr<DeviceBucket> on_device;
  };
  enum class Part { own, absent, interrupted };  // what this rank has in a reduction

  void await_end_of_backward();
  void end_interrupted();
  void begin(bool reduce);
  void own_gradient(Gradient& gradient, const at::Tensor& handed);
  void on_gradient(size_t index, const at::Tensor& handed);
  void finish();
  void rest();
  bool claim_backend();
  void release_backend();

  void divide_by(int divisor);
  void launch(Bucket& bucket, Part part);
  void launch_next(Part part);
  void launch_on_device(Bucket& bucket, Part part);
  void pack_on_device(Bucket& bucket);
  at::Tensor contribution_of(Gradient& gradient);
  void pack_small_ones(Bucket& bucket);
  bool has_own(Gradient& gradient) const;
  at::Tensor substitute_for(Gradient& gradient);
  void reduce_rest(Part part);
  c10::intrusive_ptr<c10d::Work> reduce(std::vector<at::Tensor> tensors, const c10d::ReduceOp& op);
  void wait(Bucket& bucket);
  void wait_for_buckets();
  void wait_for_hosts(const c10::intrusive_ptr<c10d::Work>& telling);
  c10::intrusive_ptr<c10d::Work> tell(Part part);
  void adopt_substitutes();

  void agree_on_order();
  void try_sizes();
  void lay_out();
  bool travels_alone(const at::Tensor& parameter) const;
  void put_small_ones(Bucket& bucket);

  const BackendPtr backend_, hosts_;
  const ReducerOptions options_;
  c10d::ReduceOp op_;
  std::optional<double> factor_;          // with which each rank multiplies its own before the sum
  std::unique_ptr<BucketStream> stream_;  // null: on cpu
  std::vector<Gradient> gradients_;
  std::vector<Bucket> buckets_;
  size_t next_ = 0;             // the bucket to go out
  std::vector<int> readiness_;  // order in which the first backward brings gradients
  bool measured_ = false;       // that order is known,
  std::vector<int> order_;      // and rank 0's is everybody's
  SizeTrial trial_;
  std::chrono::steady_clock::time_point begun_;
  at::Tensor told_;  // uint8, for each parameter whether it was used, then interruption
  bool armed_ = false, armed_reduce_ = false;
  bool active_ = false, reduce_ = false;  // within a backward
  std::weak_ptr<void> backward_;          // that one; expires with it, however it ends
  bool sends_early_ = false;              // before the end of this one
  const std::shared_ptr<std::atomic<bool>> in_arena_ = std::make_shared<std::atomic<bool>>(false);
  std::vector<std::function<void()>> detach_;
  mutable std::mutex mutex_;
};

}  // namespace pycomm
