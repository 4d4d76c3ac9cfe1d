// SPDX-License-Identifier: MIT
// What Options(inter=) makes of a group whose ranks are on several hosts: for each rank a group of
// this backend with the ranks of its host, and one of another backend, NCCL for instance, with the
// ranks that have its place on the other hosts. all_reduce, reduce_scatter and all_gather on a
// device go through both.
//
//   all_reduce      reduce_scatter on the host, all_reduce of the share between, all_gather on the
//                   host. What is small or left over goes to one rank of the host, which alone
//                   takes part between, and comes back: so all ranks get the same bits, however
//                   the groups between add.
//   reduce_scatter  on the host, then between: one block in as many as the host has ranks crosses.
//   all_gather      between, then on the host.
//
// Both halves are called as any user of c10d calls them, on a stream of torch's that is current
// meanwhile, and their works are waited for by that stream: no thread waits. The group's own engine
// carries two operations for each such call: an announcement, in which all ranks compare what they
// were asked for, and one that it attends to until the stream has done (engine/watched.h), with the
// deadline and the peers. So mismatches, deaths and timeouts are told as for any other operation,
// in the group's own numbering; what fails in a half fails the group, whose end aborts both halves.
//
// Made at the group's first such call, see hierarchy_connect.cc. prepare() and enqueue() under the
// lane's lock, abort() and close() from any thread. The device outlives it.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "plan/host_layout.h"
#include "torch/stream_marks.h"
#include "torch/tensors.h"

namespace pycomm {

class Backend;
class CallbackPool;

class Hierarchy {
 public:
  using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

  // `between`: the other backend's name. Throws CommError when pinned memory cannot be had.
  Hierarchy(HostLayout layout, std::string between, c10::Device where, Device& device,
            std::shared_ptr<CallbackPool> pool);
  ~Hierarchy();
  Hierarchy(const Hierarchy&) = delete;
  Hierarchy& operator=(const Hierarchy&) = delete;
  // Set-up only. A rank that is alone on its host has no local half.
  void set_local(BackendPtr local);
  void set_between(BackendPtr between);

  // What can be handed on, alike on all ranks: every dtype of all_gather; of the others the dtypes
  // and ops that NCCL has as well.
  static bool serves(const DeviceTensors& wanted);
  const HostLayout& layout() const { return layout_; }
  // "2 hosts of 4 ranks, nccl between them"
  std::string describe() const;
  // Where asynchronous calls run.
  c10::Stream stream() const { return stream_; }
  void* native_stream() const;
  const std::shared_ptr<StreamMarks>& marks() const { return marks_; }

  // Puts all legs on the current stream. Throws CommError for whatever a half throws.
  void enqueue(const DeviceTensors& wanted, std::chrono::milliseconds timeout);
  // Why a half is dead, in the numbering of the group: none while both live. Plain loads, but that
  // another backend is asked now and then, or at once. By one thread at a time.
  Failure failure(bool now_or_never);
  // What the local or the other half has thrown, in the numbering of the group.
  Failure explain(const std::exception& error, bool local) const;
  // The ranks of the group that this one exchanges with.
  std::vector<int> partners() const;

  // Ends whatever is under way in both halves; another backend's on a thread of the pool, for it
  // may take its time. Idempotent.
  void abort(const std::string& reason);
  // Idempotent too.
  void close(const std::string& reason, bool drain);

 private:
  struct Halves {
    BackendPtr local, between;
  };
  Halves halves() const;
  bool has_mates() const { return layout_.mates().size() > 1; }
  std::vector<int> ranks_between() const;
  Failure translated(const Failure& found, bool local) const;

  const HostLayout layout_;
  const std::string name_;
  const c10::Device where_;
  const c10::Stream stream_;
  const std::shared_ptr<StreamMarks> marks_;
  const std::shared_ptr<CallbackPool> pool_;
  mutable std::mutex mutex_;
  Halves halves_;
  std::chrono::steady_clock::time_point asked_{};
  std::atomic_flag aborted_, closed_;  // another backend's half
  bool answers_ = true;                // the other backend says how it is
};

}  // namespace pycomm
