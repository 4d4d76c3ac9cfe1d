// SPDX-License-Identifier: MIT
// One Work for several that were issued between startCoalescing() and endCoalescing(): over when
// all of them are, failed with the first error in the order of the calls. Thread-safe, as c10d
// demands; owns the works it joins.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

namespace pycomm {

class JoinedWork final : public c10d::Work {
 public:
  using Parts = std::vector<c10::intrusive_ptr<c10d::Work>>;

  JoinedWork(int rank, Parts parts);

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  // `timeout` holds for all of them together.
  bool wait(std::chrono::milliseconds timeout) override;
  void synchronize() override {
    for (const auto& part : parts_) part->synchronize();
  }
  void blockCurrentStream() override { wait(kNoTimeout); }
  std::vector<at::Tensor> result() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  // Of the first that failed, else success.
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;
  // Of a batch with a single recv, who sent; of others that of the first.
  int sourceRank() const override;
  uint64_t getSequencenumber() const override;
  // The longest of them, in milliseconds.
  float getDuration() const override;

 private:
  const Parts parts_;
};

}  // namespace pycomm
