// SPDX-License-Identifier: MIT
#include "device/fake_device.h"

#include <algorithm>
#include <cstring>

namespace pycomm {
namespace {

thread_local int current_device = 0;

Failure failed(const char* call, const FakeDevice& device, const std::string& why) {
  return {FailureKind::system,
          str(call, " failed on GPU ", device.facts().index, " (", device.facts().uuid, "): ", why),
          {}};
}

FakeTask always(std::function<void()> function) {
  return [function = std::move(function)](const std::atomic<bool>&) {
    function();
    return true;
  };
}

std::atomic<uint64_t> capture_ids{0};

}  // namespace

FakeDevice::FakeDevice(FakeOptions options, int index) : options_(std::move(options)) {
  facts_.index = index;
  facts_.name = "fake GPU";
  facts_.uuid = options_.uuid;
  facts_.processors = options_.processors;
  facts_.memory_bytes = options_.memory_bytes;
  facts_.words = options_.words;
  facts_.host_memory = options_.host_memory;
  facts_.descriptors = options_.descriptors;
  facts_.ipc = options_.ipc;
  default_stream_ =
      std::make_unique<FakeStream>(options_.seed, std::chrono::microseconds(options_.delay_us));
}

FakeDevice::~FakeDevice() {
  default_stream_->stop();
  for (auto& stream : streams_) stream.second->stop();
  for (auto& stream : retired_) stream->stop();
  default_stream_.reset();
  streams_.clear();
  retired_.clear();
  release_all();
}

// Under mutex_. A failure that the test asked for, or a call that CUDA would refuse.
Failure FakeDevice::begin(const char* call, Call kind) {
  if (calls_until_failure_ >= 0 && calls_until_failure_-- == 0) {
    return failed(call, *this, failure_text_);
  }
  if (kind == Call::not_while_capturing && !captures_.empty()) {
    for (FakeCapture* capture : captures_) capture->invalid = str(call, " during a capture");
    return failed(call, *this, "operation not permitted while a stream is capturing");
  }
  return {};
}

void FakeDevice::fail_after(int calls, std::string text) {
  const std::lock_guard lock(mutex_);
  calls_until_failure_ = calls;
  failure_text_ = std::move(text);
}

int FakeDevice::enter() { return std::exchange(current_device, facts_.index); }
void FakeDevice::leave(int previous) { current_device = previous; }

FakeStream* FakeDevice::find(void* stream) {
  if (!stream) return default_stream_.get();
  const auto at = streams_.find(stream);
  return at == streams_.end() ? nullptr : at->second.get();
}

std::shared_ptr<FakeEvent> FakeDevice::event_of(void* event) const {
  const auto at = events_.find(event);
  return at == events_.end() ? nullptr : at->second;
}

Failure FakeDevice::create_stream(bool, void** stream) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("create_stream")) return failure;
  auto made = std::make_unique<FakeStream>(options_.seed + 1000 * ++streams_made_,
                                           std::chrono::microseconds(options_.delay_us),
                                           options_.one_queue ? default_stream_.get() : nullptr);
  *stream = made.get();
  streams_.emplace(*stream, std::move(made));
  return {};
}

Failure FakeDevice::destroy_stream(void* stream) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("destroy_stream")) return failure;
  const auto at = streams_.find(stream);
  if (at == streams_.end()) return failed("destroy_stream", *this, "no such stream");
  retired_.push_back(std::move(at->second));
  streams_.erase(at);
  return {};
}

DeviceProgress FakeDevice::query_stream(void* stream) {
  const std::lock_guard lock(mutex_);
  FakeStream* found = find(stream);
  if (!found || begin("query_stream", Call::not_while_capturing)) return DeviceProgress::failed;
  return found->idle() ? DeviceProgress::done : DeviceProgress::pending;
}

Failure FakeDevice::synchronize(void* stream) {
  FakeStream* found = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (Failure failure = begin("synchronize", Call::not_while_capturing)) return failure;
    found = find(stream);
  }
  if (!found) return failed("synchronize", *this, "no such stream");
  found->wait_idle();
  return {};
}

Failure FakeDevice::create_event(bool, void** event) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("create_event")) return failure;
  auto made = std::make_shared<FakeEvent>();
  *event = made.get();
  events_.emplace(*event, std::move(made));
  return {};
}

Failure FakeDevice::destroy_event(void* event) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("destroy_event")) return failure;
  return events_.erase(event) ? Failure{} : failed("destroy_event", *this, "no such event");
}

Failure FakeDevice::record(void* event, void* stream) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("record")) return failure;
  FakeStream* on = find(stream);
  const auto recorded = event_of(event);
  if (!on || !recorded) return failed("record", *this, "no such stream or event");
  if (on->capture) {
    on->capture->record(on, *recorded);
    return {};
  }
  recorded->capture = 0;
  recorded->latest = std::make_shared<FakeRecord>();
  on->push(always([record = recorded->latest] {
    record->at_ns = std::chrono::steady_clock::now().time_since_epoch().count();
    record->done = true;
  }));
  return {};
}

Failure FakeDevice::wait_event(void* stream, void* event) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("wait_event")) return failure;
  FakeStream* on = find(stream);
  const auto awaited = event_of(event);
  if (!on || !awaited) return failed("wait_event", *this, "no such stream or event");
  if (awaited->capture) {
    const auto capture = std::find_if(captures_.begin(), captures_.end(),
                                      [&](auto* one) { return one->id == awaited->capture; });
    if (capture == captures_.end()) {
      return failed("wait_event", *this, "the event was recorded in a capture that has ended");
    }
    if (on->capture && on->capture.get() != *capture) {
      return failed("wait_event", *this, "the stream takes part in another capture");
    }
    if (!on->capture) on->capture = (*capture)->origin->capture;
    on->capture->wait(on, *awaited);
    return {};
  }
  const auto record = awaited->latest;
  if (on->capture && record) {
    on->capture->invalid = "a wait for an event from outside the capture";
    return failed("wait_event", *this, "dependency on uncaptured work in another stream");
  }
  if (!record) return {};
  on->push([record](const std::atomic<bool>& stopping) {
    return fake_await(stopping, [&] { return record->done.load(); });
  });
  return {};
}

DeviceProgress FakeDevice::query_event(void* event) {
  const std::lock_guard lock(mutex_);
  const auto asked = event_of(event);
  if (!asked || begin("query_event", Call::not_while_capturing) || asked->capture) {
    return DeviceProgress::failed;
  }
  const bool done = !asked->latest || asked->latest->done;
  return done ? DeviceProgress::done : DeviceProgress::pending;
}

Failure FakeDevice::synchronize_event(void* event) {
  std::shared_ptr<FakeRecord> record;
  {
    const std::lock_guard lock(mutex_);
    if (Failure failure = begin("synchronize_event", Call::not_while_capturing)) return failure;
    const auto awaited = event_of(event);
    if (!awaited || awaited->capture) {
      return failed("synchronize_event", *this, "no such event, or one recorded in a capture");
    }
    record = awaited->latest;
  }
  if (!record) return {};
  const std::atomic<bool> never{false};
  fake_await(never, [&] { return record->done.load(); });
  return {};
}

Failure FakeDevice::elapsed_ms(void* begin_event, void* end_event, float* ms) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("elapsed_ms")) return failure;
  const auto begun = event_of(begin_event), ended = event_of(end_event);
  const auto first = begun ? begun->latest : nullptr, last = ended ? ended->latest : nullptr;
  if (!first || !last || !first->done || !last->done) {
    return failed("elapsed_ms", *this, "an event that is not done");
  }
  *ms = static_cast<float>(last->at_ns - first->at_ns) * 1e-6f;
  return {};
}

Failure FakeDevice::enqueue(const char* call, void* stream, FakeTask task) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin(call)) return failure;
  FakeStream* on = find(stream);
  if (!on) return failed(call, *this, "no such stream");
  if (!on->capture) {
    on->push(std::move(task));
  } else if (on->capture->invalid.empty()) {
    on->capture->add(on, std::move(task));
  } else {
    return failed(call, *this, str("the capture is invalid: ", on->capture->invalid));
  }
  return {};
}

Failure FakeDevice::word_operations(void* stream, std::span<const WordOperation> operations) {
  if (!options_.words) return failed("word_operations", *this, "not supported by this GPU");
  for (const WordOperation& one : operations) {
    Failure failure;
    if (one.kind == WordOperation::Kind::write) {
      failure = enqueue("write_value", stream, always([one] {
                          std::atomic_ref(*one.word).store(one.value, std::memory_order_release);
                        }));
    } else {
      failure = enqueue("wait_value", stream, [one](const std::atomic<bool>& stopping) {
        return fake_await(stopping, [&] {
          const uint64_t now = std::atomic_ref(*one.word).load(std::memory_order_acquire);
          return static_cast<int64_t>(now - one.value) >= 0;
        });
      });
    }
    if (failure) return failure;
  }
  return {};
}

Failure FakeDevice::copy(void* stream, void* to, const void* from, size_t bytes) {
  return enqueue("copy", stream, always([=] { std::memmove(to, from, bytes); }));
}

Failure FakeDevice::fill(void* stream, void* to, int byte, size_t bytes) {
  return enqueue("fill", stream, always([=] { std::memset(to, byte, bytes); }));
}

Failure FakeDevice::enqueue_host(void* stream, std::function<void()> function) {
  return enqueue("enqueue_host", stream, always(std::move(function)));
}

Failure FakeDevice::begin_capture(void* stream) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("begin_capture")) return failure;
  FakeStream* on = find(stream);
  if (!on || on->capture) return failed("begin_capture", *this, "no such stream, or it captures");
  on->capture = std::make_shared<FakeCapture>();
  on->capture->id = ++capture_ids;
  on->capture->origin = on;
  on->capture->members[on];
  captures_.insert(on->capture.get());
  return {};
}

Failure FakeDevice::end_capture(void* stream, std::shared_ptr<const FakeGraph>* out) {
  const std::lock_guard lock(mutex_);
  if (Failure failure = begin("end_capture")) return failure;
  FakeStream* on = find(stream);
  if (!on || !on->capture || on->capture->origin != on) {
    return failed("end_capture", *this, "the capture did not begin on this stream");
  }
  const auto capture = on->capture;
  captures_.erase(capture.get());
  default_stream_->capture =
      default_stream_->capture == capture ? nullptr : default_stream_->capture;
  for (auto& one : streams_) {
    if (one.second->capture == capture) one.second->capture = nullptr;
  }
  if (!capture->invalid.empty()) return failed("end_capture", *this, capture->invalid);
  if (capture->unjoined()) return failed("end_capture", *this, "a stream was not joined back");
  *out = std::make_shared<const FakeGraph>(std::move(capture->graph));
  return {};
}

Failure FakeDevice::replay(const FakeGraph& graph, void* stream) {
  for (const FakeTask& task : graph.tasks) {
    if (Failure failure = enqueue("replay", stream, task)) return failure;
  }
  return {};
}

Failure FakeDevice::capture_of(void* stream, Capture* out) {
  const std::lock_guard lock(mutex_);
  FakeStream* on = find(stream);
  if (!on) return failed("capture_of", *this, "no such stream");
  *out = on->capture ? Capture{on->capture->id, !on->capture->invalid.empty()} : Capture{};
  return {};
}

}  // namespace pycomm
