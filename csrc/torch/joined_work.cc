// SPDX-License-Identifier: MIT
#include "torch/joined_work.h"

#include <ATen/core/ivalue_inl.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "base/deadline.h"

namespace pycomm {

JoinedWork::JoinedWork(int rank, Parts parts)
    : c10d::Work(rank, c10d::OpType::COALESCED), parts_(std::move(parts)) {}

bool JoinedWork::isCompleted() {
  return std::all_of(parts_.begin(), parts_.end(),
                     [](const auto& part) { return part->isCompleted(); });
}

bool JoinedWork::isSuccess() const { return !exception(); }

std::exception_ptr JoinedWork::exception() const {
  for (const auto& part : parts_) {
    if (auto error = part->exception()) return error;
  }
  return nullptr;
}

bool JoinedWork::wait(std::chrono::milliseconds timeout) {
  if (timeout == kNoTimeout || timeout.count() < 0) {
    for (const auto& part : parts_) part->wait(timeout);
    return true;
  }
  const auto deadline = Deadline::after(timeout);
  for (const auto& part : parts_) {
    // Zero would mean: as long as it takes.
    part->wait(std::chrono::milliseconds(std::max(1, deadline.remaining_ms_at_most(1 << 30))));
  }
  return true;
}

std::vector<at::Tensor> JoinedWork::result() {
  std::vector<at::Tensor> all;
  for (const auto& part : parts_) {
    for (auto& tensor : part->result()) all.push_back(std::move(tensor));
  }
  return all;
}

c10::intrusive_ptr<c10::ivalue::Future> JoinedWork::getFuture() {
  std::vector<c10::intrusive_ptr<c10::ivalue::Future>> futures;
  std::vector<c10::Device> devices;
  for (const auto& part : parts_) {
    futures.push_back(part->getFuture());
    const auto& more = futures.back()->devices();
    devices.insert(devices.end(), more.begin(), more.end());
  }
  const auto joined = c10::make_intrusive<c10::ivalue::Future>(
      c10::ListType::create(c10::TensorType::get()), devices);
  if (parts_.empty()) {
    joined->markCompleted(c10::IValue(std::vector<at::Tensor>{}));
    return joined;
  }
  const auto left = std::make_shared<std::atomic<size_t>>(parts_.size());
  const auto self = c10::intrusive_ptr<JoinedWork>::reclaim_copy(this);
  for (const auto& future : futures) {
    future->addCallback([self, joined, left, futures](c10::ivalue::Future&) {
      if (left->fetch_sub(1) != 1) return;
      if (const auto error = self->exception()) {
        joined->setError(error);
      } else {
        for (const auto& one : futures) one->wait();  // all are complete: their streams
        joined->markCompleted(c10::IValue(self->result()));
      }
    });
  }
  return joined;
}

c10::intrusive_ptr<c10::ivalue::Future> JoinedWork::getFutureResult() {
  const auto joined = c10::make_intrusive<c10::ivalue::Future>(c10::IntType::get());
  if (parts_.empty()) {
    joined->markCompleted(c10::IValue(static_cast<int64_t>(c10d::WorkResult::SUCCESS)));
    return joined;
  }
  const auto left = std::make_shared<std::atomic<size_t>>(parts_.size());
  const auto self = c10::intrusive_ptr<JoinedWork>::reclaim_copy(this);
  for (const auto& part : parts_) {
    part->getFutureResult()->addCallback([self, joined, left](c10::ivalue::Future&) {
      if (left->fetch_sub(1) != 1) return;
      int64_t result = 0;
      for (const auto& one : self->parts_) {
        if (result == 0) result = one->getFutureResult()->constValue().toInt();
      }
      joined->markCompleted(c10::IValue(result));
    });
  }
  return joined;
}

int JoinedWork::sourceRank() const {
  for (const auto& part : parts_) {
    if (part->retrieveOpType() == c10d::OpType::RECVANYSOURCE) return part->sourceRank();
  }
  return parts_.empty() ? -1 : parts_.front()->sourceRank();
}

uint64_t JoinedWork::getSequencenumber() const {
  return parts_.empty() ? 0 : parts_.front()->getSequencenumber();
}

float JoinedWork::getDuration() const {
  float longest = 0;
  for (const auto& part : parts_) longest = std::max(longest, part->getDuration());
  return longest;
}

}  // namespace pycomm
