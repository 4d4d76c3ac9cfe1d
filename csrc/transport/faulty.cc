// SPDX-License-Identifier: MIT
#include "transport/faulty.h"

#include <csignal>

#include "base/error.h"

namespace pycomm {
namespace {

class FaultyChannel final : public Channel {
 public:
  FaultyChannel(std::unique_ptr<Channel> inner, FaultPlan faults, int peer_rank)
      : inner_(std::move(inner)), faults_(faults), peer_rank_(peer_rank) {}

  std::byte* try_reserve(size_t payload_bytes) override {
    check_whole();
    if (delayed(reserve_tries_)) return nullptr;
    reserved_ = inner_->try_reserve(payload_bytes);
    return reserved_;
  }
  void commit(const FrameHeader& header) override {
    const uint64_t number = committed_++;
    if (number == faults_.signal_before_frame) ::raise(faults_.signal);
    if (number == faults_.drop_frame) return;
    if (number == faults_.corrupt_frame && header.payload_bytes > 0) {
      reserved_[header.payload_bytes / 2] ^= std::byte{0x10};
    }
    inner_->commit(header);
  }
  bool try_peek(ReceivedFrame& frame) override {
    return !delayed(peek_tries_) && inner_->try_peek(frame);
  }
  void consume() override { inner_->consume(); }
  bool peer_reaches(const std::byte* data, size_t bytes, size_t bytes_min) const override {
    return inner_->peer_reaches(data, bytes, bytes_min);
  }
  bool try_commit_reference(const FrameHeader& header, const Window& window) override {
    check_whole();
    if (delayed(reserve_tries_)) return false;
    if (committed_ == faults_.signal_before_frame) ::raise(faults_.signal);
    if (committed_ == faults_.drop_frame) {
      ++committed_;
      return true;
    }
    if (!inner_->try_commit_reference(header, window)) return false;
    ++committed_;
    return true;
  }
  bool references_consumed() override { return inner_->references_consumed(); }
  bool try_flush() override { return inner_->try_flush(); }
  size_t payload_bytes_max() const override { return inner_->payload_bytes_max(); }

 private:
  void check_whole() const {
    if (committed_ < faults_.cut_before_frame) return;
    throw CommError(Failure{FailureKind::peer_failure,
                            str("the connection to rank ", peer_rank_, " is lost: cut by test"),
                            {peer_rank_}});
  }
  bool delayed(uint64_t& tries) const {
    return faults_.delay_every != 0 && ++tries % faults_.delay_every != 0;
  }

  std::unique_ptr<Channel> inner_;
  FaultPlan faults_;
  int peer_rank_;
  std::byte* reserved_ = nullptr;
  uint64_t committed_ = 0;
  uint64_t reserve_tries_ = 0;
  uint64_t peek_tries_ = 0;
};

}  // namespace

std::unique_ptr<Channel> make_faulty(std::unique_ptr<Channel> inner, FaultPlan faults,
                                     int peer_rank) {
  return std::make_unique<FaultyChannel>(std::move(inner), faults, peer_rank);
}

}  // namespace pycomm
