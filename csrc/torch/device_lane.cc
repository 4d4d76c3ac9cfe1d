// SPDX-License-Identifier: MIT
#include "torch/device_lane.h"

#include "base/limits.h"
#include "engine/signature.h"

namespace pycomm {

void DeviceLane::check(const Failure& failure) {
  if (failure) throw CommError(failure);
}

DeviceLane::DeviceLane(c10::Device where, Device& device, int world_size)
    : where_(where),
      device_(device),
      guard_(where.type()),
      behind_(guard_.getStreamFromGlobalPool(where, true)),
      staging_(device, world_size) {
  check(device_.allocate_pinned(kPageBytes, &gate_word_));
  std::atomic_ref(*static_cast<uint64_t*>(gate_word_.host)).store(0);
}

// Streams end what they have been given by themselves.
DeviceLane::~DeviceLane() {
  const auto& word = *static_cast<uint64_t*>(gate_word_.host);
  const auto patience = Deadline::after(kStreamPatience);
  const auto reached = [&] {
    return std::atomic_ref(const_cast<uint64_t&>(word)).load() >= gates_;
  };
  while (!reached() && !patience.expired()) std::this_thread::sleep_for(kReadyNap);
  if (reached()) (void)device_.release_pinned(gate_word_);
  for (Kept& one : kept_) {
    while (!one.passed() && !patience.expired()) std::this_thread::sleep_for(kReadyNap);
    // A stream may still write there.
    if (!one.passed()) (void)new std::vector<at::Tensor>(std::move(one.tensors));
  }
  for (const auto& [what, stream] : streams_) (void)device_.destroy_stream(stream);
  for (const Last& last : {last_, last_captured_}) {
    if (last.event) free_events_.push_back(last.event);
  }
  for (void* event : free_events_) (void)device_.destroy_event(event);
}

void DeviceLane::Event::record(void* stream) const {
  const DeviceScope scope(lane_->device_);
  check(lane_->device_.record(event_, stream));
}

void DeviceLane::Event::hold(void* stream) const {
  const DeviceScope scope(lane_->device_);
  check(lane_->device_.wait_event(stream, event_));
}

void* DeviceLane::current_native() const { return guard_.getStreamNativeHandle(current()); }

uint64_t DeviceLane::capture_of(void* stream) const {
  Capture capture;
  check(device_.capture_of(stream, &capture));
  return capture.id;
}

void DeviceLane::refuse_capture(Collective collective, void* stream) const {
  PYCOMM_USAGE(capture_of(stream) == 0, name_of(collective),
               ": a graph is being captured on the current stream, but this operation goes "
               "through the host, which a graph cannot replay; call it outside the graph");
}

void* DeviceLane::stream(int what) {
  void*& stream = streams_[what];
  if (!stream) {
    const DeviceScope scope(device_);
    check(device_.create_stream(true, &stream));
  }
  return stream;
}

void* DeviceLane::message_stream(bool sends, int peer) { return stream(sends ? kSent : peer); }

void* DeviceLane::take_event() {
  {
    const std::lock_guard lock(events_mutex_);
    if (!free_events_.empty()) {
      void* const event = free_events_.back();
      free_events_.pop_back();
      return event;
    }
  }
  void* event = nullptr;
  const DeviceScope scope(device_);
  check(device_.create_event(false, &event));
  return event;
}

DeviceLane::EventPtr DeviceLane::make_event() {
  return std::make_shared<const Event>(shared_from_this(), take_event());
}

void DeviceLane::give_back(void* event) {
  const std::lock_guard lock(events_mutex_);
  free_events_.push_back(event);
}

void DeviceLane::order(void* stream, void* other) {
  if (stream == other) return;
  const auto here = make_event();
  here->record(other);
  here->hold(stream);
}

void DeviceLane::after_collectives(void* stream, uint64_t capture) {
  const Last& last = capture ? last_captured_ : last_;
  if (!last.event || last.stream == stream || last.capture != capture) return;
  const DeviceScope scope(device_);
  check(device_.wait_event(stream, last.event));
}

void DeviceLane::ends_collective(void* stream, uint64_t capture) {
  Last& last = capture ? last_captured_ : last_;
  if (!last.event) last.event = take_event();
  const DeviceScope scope(device_);
  check(device_.record(last.event, stream));
  last.stream = stream;
  last.capture = capture;
}

c10::Stream DeviceLane::behind(void* stream) {
  order(guard_.getStreamNativeHandle(behind_), stream);
  return behind_;
}

c10::Stream DeviceLane::behind(const Event& event) {
  event.hold(guard_.getStreamNativeHandle(behind_));
  return behind_;
}

uint64_t DeviceLane::keep(std::vector<at::Tensor> tensors, std::function<bool()> passed) {
  kept_.push_back({++keeps_, std::move(tensors), std::move(passed)});
  return keeps_;
}

std::vector<at::Tensor> DeviceLane::sweep(uint64_t number) {
  std::vector<at::Tensor> over;
  std::erase_if(kept_, [&](Kept& one) {
    if (one.number != number && !one.passed()) return false;
    for (auto& tensor : one.tensors) over.push_back(std::move(tensor));
    return true;
  });
  return over;
}

void DeviceLane::gate(Operation& operation) {
  void* const stream = current_native();
  refuse_capture(operation.collective, stream);
  operation.ready_word = static_cast<uint64_t*>(gate_word_.host);
  operation.ready_value = ++gates_;
  const DeviceScope scope(device_);
  // On streams that nothing orders, so only the lane's own may write it.
  void* const own = own_stream();
  order(own, stream);
  after_collectives(own);
  check(device_.write_value(own, static_cast<uint64_t*>(gate_word_.device), gates_));
}

}  // namespace pycomm
