// SPDX-License-Identifier: MIT
// What one group has of one device: its streams, the order of its operations there, the memory they
// go through, and what keeps tensors alive until a stream has done with them.
//
// Collectives of a group run one behind the other, whichever streams they are put on: on the lane's
// own when the call is asynchronous, else on the caller's current one. Messages have streams of
// their own, one for all that is sent and one for each peer that is received from, so that none
// waits for a collective or for another peer. mutex() is held over everything that one call puts on
// streams, so that calls of several threads do not mix. Nothing here blocks; shared by the backend
// and its works.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"
#include "engine/host_staging.h"

namespace pycomm {

class DeviceGroup;

class DeviceLane : public std::enable_shared_from_this<DeviceLane> {
 public:
  DeviceLane(c10::Device where, Device& device, int world_size);
  ~DeviceLane();
  DeviceLane(const DeviceLane&) = delete;
  DeviceLane& operator=(const DeviceLane&) = delete;

  // An event of the device; goes back to the lane.
  class Event {
   public:
    Event(std::shared_ptr<DeviceLane> lane, void* event) : lane_(std::move(lane)), event_(event) {}
    ~Event() { lane_->give_back(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(void* stream) const;
    void hold(void* stream) const;  // until the work before record() is done

   private:
    const std::shared_ptr<DeviceLane> lane_;
    void* const event_;
  };
  using EventPtr = std::shared_ptr<const Event>;

  std::mutex& mutex() { return mutex_; }
  c10::Device where() const { return where_; }
  Device& device() { return device_; }

  // The caller's current stream, as torch's and as the device's.
  c10::Stream current() const { return guard_.getStream(where_); }
  void* current_native() const;
  // The capture that a stream takes part in, 0 for none.
  uint64_t capture_of(void* stream) const;
  // All under mutex() from here on. Throws UsageError while a graph is captured on `stream`.
  void refuse_capture(Collective collective, void* stream) const;
  // The stream of the next asynchronous collective, of messages sent, of those received from a
  // rank, kAnySource for any.
  void* own_stream() { return stream(kCollectives); }
  void* message_stream(bool sends, int peer);
  EventPtr make_event();
  // `stream` goes on when what `other` has been given by now is done.
  void order(void* stream, void* other);
  // The same for the group's collectives so far, and for those that come after what `stream` has
  // been given by now. What a graph captures has an order of its own.
  void after_collectives(void* stream, uint64_t capture = 0);
  void ends_collective(void* stream, uint64_t capture = 0);
  // For torch's own operators and Futures: a stream of torch's that has just been ordered after
  // `stream`, or after an event. For the latter alone the lock may be missing.
  c10::Stream behind(void* stream);
  c10::Stream behind(const Event& event);

  HostStaging& staging() { return staging_; }
  // How ranks work together without the host, once they have connected.
  std::shared_ptr<DeviceGroup>& group() { return group_; }
  // Keeps tensors alive until the stream has done with them, which `passed` says by plain loads.
  // Returns the number they are kept under, from 1.
  uint64_t keep(std::vector<at::Tensor> tensors, std::function<bool()> passed);
  // Those that need not be kept any longer, and those under `number`; the caller drops them without
  // the lock.
  std::vector<at::Tensor> sweep(uint64_t number = 0);

  // Lets a barrier begin when the current stream has come to where it is now, and the group's
  // collectives have ended.
  void gate(Operation& operation);

 private:
  static constexpr int kCollectives = -3, kSent = -2;
  struct Kept {
    uint64_t number;
    std::vector<at::Tensor> tensors;
    std::function<bool()> passed;
  };
  void* stream(int what);
  void* take_event();
  void give_back(void* event);
  static void check(const Failure& failure);

  const c10::Device where_;
  Device& device_;
  const c10::impl::VirtualGuardImpl guard_;
  std::mutex mutex_;
  std::map<int, void*> streams_;
  // The end of the group's last collective, and of the last that was captured.
  struct Last {
    void* event = nullptr;
    void* stream = nullptr;
    uint64_t capture = 0;
  };
  Last last_, last_captured_;
  const c10::Stream behind_;
  std::vector<Kept> kept_;
  uint64_t keeps_ = 0;
  std::mutex events_mutex_;
  std::vector<void*> free_events_;
  uint64_t gates_ = 0;
  HostAllocation gate_word_;
  HostStaging staging_;
  std::shared_ptr<DeviceGroup> group_;
};

}  // namespace pycomm
