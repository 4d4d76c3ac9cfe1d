// SPDX-License-Identifier: MIT
// The fake GPU keeps the promises of Device, and CUDA's rules where breaking them breaks on CUDA.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "device/fake_device.h"

using namespace pycomm;
using namespace std::chrono_literals;

namespace {

void must(const Failure& failure) { CHECK(!failure, failure.text); }

void* new_stream(Device& device) {
  void* stream = nullptr;
  must(device.create_stream(false, &stream));
  return stream;
}

void* new_event(Device& device) {
  void* event = nullptr;
  must(device.create_event(false, &event));
  return event;
}

uint64_t read(uint64_t& word) { return std::atomic_ref(word).load(std::memory_order_acquire); }
void store(uint64_t& word, uint64_t value) {
  std::atomic_ref(word).store(value, std::memory_order_release);
}

// Words that a forked child sees too.
uint64_t* shared_words() {
  void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  return static_cast<uint64_t*>(at);
}

// Runs `body` in a child; true when it returned true.
template <class Body>
bool holds_in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool held = false;
    try {
      held = body();
    } catch (const std::exception& error) {
      std::printf("in the child: %s\n", error.what());
      std::fflush(stdout);
    }
    ::_exit(held ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST("work on one stream runs in the order of the calls, also with delays") {
  FakeDevice device({.seed = 7, .delay_us = 300});
  void* stream = new_stream(device);
  std::vector<int> order;
  for (int i = 0; i < 50; ++i) must(device.enqueue_host(stream, [&, i] { order.push_back(i); }));
  must(device.synchronize(stream));
  for (int i = 0; i < 50; ++i) CHECK(order[static_cast<size_t>(i)] == i, i);
}

TEST("a stream that waits for an event runs after what was before the event") {
  FakeDevice device({.seed = 3, .delay_us = 500});
  void *first = new_stream(device), *second = new_stream(device), *event = new_event(device);
  for (int round = 0; round < 30; ++round) {
    int value = 0, seen = -1;
    must(device.enqueue_host(first, [&] { value = round; }));
    must(device.record(event, first));
    must(device.wait_event(second, event));
    must(device.enqueue_host(second, [&] { seen = value; }));
    must(device.synchronize(second));
    CHECK(seen == round, seen, " in round ", round);
    CHECK(device.query_event(event) == DeviceProgress::done);
  }
}

TEST("a stream that waits for an event does not care that it is recorded again elsewhere") {
  FakeDevice device;
  void *first = new_stream(device), *second = new_stream(device), *other = new_stream(device);
  void* event = new_event(device);
  uint64_t word = 0;
  std::atomic<bool> passed{false};
  must(device.wait_value(first, &word, 1));
  must(device.record(event, first));
  must(device.wait_event(second, event));
  must(device.enqueue_host(second, [&] { passed = true; }));
  must(device.record(event, other));
  must(device.synchronize(other));
  CHECK(device.query_event(event) == DeviceProgress::done);
  CHECK(device.query_stream(second) == DeviceProgress::pending && !passed);
  store(word, 1);
  must(device.synchronize(second));
  CHECK(passed);
}

TEST("waiting for an event that was never recorded does not hold the stream") {
  FakeDevice device;
  must(device.wait_event(nullptr, new_event(device)));
  must(device.synchronize(nullptr));
}

TEST("a wait holds its stream until another stream or a plain store writes the word") {
  FakeDevice device;
  void *waiting = new_stream(device), *writing = new_stream(device);
  uint64_t word = 0;
  std::atomic<int> passed{0};
  must(device.wait_value(waiting, &word, 1));
  must(device.enqueue_host(waiting, [&] { ++passed; }));
  must(device.wait_value(waiting, &word, 2));
  must(device.enqueue_host(waiting, [&] { ++passed; }));
  CHECK(device.query_stream(waiting) == DeviceProgress::pending);
  CHECK(passed == 0);
  must(device.write_value(writing, &word, 1));
  while (passed != 1) std::this_thread::yield();
  store(word, 2);
  must(device.synchronize(waiting));
  CHECK(passed == 2);
  CHECK(device.query_stream(waiting) == DeviceProgress::done);
}

TEST("a word counts on through its wrap") {
  FakeDevice device;
  uint64_t word = UINT64_MAX;
  must(device.wait_value(nullptr, &word, UINT64_MAX - 1));
  must(device.write_value(nullptr, &word, 1));
  must(device.wait_value(nullptr, &word, UINT64_MAX));
  must(device.synchronize(nullptr));
}

TEST("a batch of word operations happens in its order") {
  FakeDevice device;
  uint64_t words[2] = {0, 0};
  using Kind = WordOperation::Kind;
  const WordOperation batch[] = {
      {Kind::write, &words[0], 1}, {Kind::wait, &words[1], 1}, {Kind::write, &words[0], 0}};
  must(device.word_operations(nullptr, batch));
  while (read(words[0]) != 1) std::this_thread::yield();
  store(words[1], 1);
  must(device.synchronize(nullptr));
  CHECK(read(words[0]) == 0);
}

TEST("copies and fills happen in stream order") {
  FakeDevice device({.seed = 5, .delay_us = 200});
  void* data = nullptr;
  must(device.allocate(64, &data));
  HostAllocation pinned;
  must(device.allocate_pinned(64, &pinned));
  must(device.fill(nullptr, data, 7, 64));
  must(device.copy(nullptr, pinned.device, data, 64));
  must(device.fill(nullptr, data, 8, 64));
  must(device.synchronize(nullptr));
  CHECK(static_cast<char*>(pinned.host)[63] == 7);
  must(device.release(data));
  must(device.release_pinned(pinned));
  CHECK(device.live() == 0);
}

TEST("memory behind a descriptor is the same memory after import") {
  FakeDevice owner, peer;
  SharedAllocation mine, theirs;
  ShareHandle handle;
  must(owner.allocate_shared(ShareKind::descriptor, 10000, &mine));
  must(owner.export_shared(mine, &handle));
  must(peer.import_shared(handle, &theirs));
  CHECK(mine.bytes >= 10000 && theirs.bytes == mine.bytes);
  must(owner.fill(nullptr, mine.data, 9, mine.bytes));
  must(owner.synchronize(nullptr));
  CHECK(static_cast<char*>(theirs.data)[9999] == 9);
  must(peer.close_shared(theirs));
  must(owner.close_shared(mine));
  CHECK(owner.live() == 0 && peer.live() == 0 && owner.used_bytes() == 0);
}

TEST("two processes share memory by an IPC handle and order their streams by words") {
  uint64_t* words = shared_words();
  auto* handle = reinterpret_cast<ShareHandle*>(words + 8);
  const auto run = [&](bool parent) {
    FakeDevice device({.seed = parent ? 1u : 2u, .delay_us = 200});
    SharedAllocation memory;
    if (parent) {
      must(device.allocate_shared(ShareKind::ipc, 4096, &memory));
      must(device.export_shared(memory, handle));
      store(words[0], 1);
    } else {
      while (read(words[0]) == 0) std::this_thread::yield();
      must(device.import_shared(*handle, &memory));
    }
    // A hand-over there and back for each round, by streams alone.
    auto* value = static_cast<uint64_t*>(memory.data);
    const int me = parent ? 1 : 2;
    for (uint64_t round = 1; round <= 20; ++round) {
      if (!parent) must(device.wait_value(nullptr, &words[1], round));
      must(device.enqueue_host(nullptr, [value] { ++*value; }));
      must(device.write_value(nullptr, &words[me], round));
      if (parent) must(device.wait_value(nullptr, &words[2], round));
    }
    must(device.synchronize(nullptr));
    const bool right = *value == 40;
    // The owner goes last.
    if (parent) {
      while (read(words[3]) == 0) std::this_thread::yield();
    }
    must(device.close_shared(memory));
    if (!parent) store(words[3], 1);
    return right;
  };
  const pid_t child = ::fork();
  if (child == 0) ::_exit(run(false) ? 0 : 1);
  const bool mine = run(true);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(mine && WIFEXITED(status) && WEXITSTATUS(status) == 0, status);
  ::munmap(words, 4096);
}

TEST("an IPC handle cannot be opened where it was made, nor memory without peer access") {
  FakeDevice owner({.uuid = "A"}), stranger({.uuid = "B", .peer_access = false});
  SharedAllocation mine, theirs;
  ShareHandle handle, descriptor;
  must(owner.allocate_shared(ShareKind::ipc, 1, &mine));
  must(owner.export_shared(mine, &handle));
  CHECK(owner.import_shared(handle, &theirs).text.find("itself") != std::string::npos);
  CHECK(holds_in_child([&] {
    FakeDevice device({.uuid = "A"});
    return !device.import_shared(handle, &theirs);
  }));
  must(owner.close_shared(mine));
  must(owner.allocate_shared(ShareKind::descriptor, 1, &mine));
  must(owner.export_shared(mine, &descriptor));
  const Failure refused = stranger.import_shared(descriptor, &theirs);
  CHECK(refused.text.find("no peer access to the GPU A") != std::string::npos, refused.text);
}

TEST("what is captured runs at each replay and not before") {
  FakeDevice device;
  void *stream = new_stream(device), *side = new_stream(device);
  void *fork = new_event(device), *join = new_event(device);
  int runs = 0, side_runs = 0;
  must(device.begin_capture(stream));
  Capture capture;
  must(device.capture_of(stream, &capture));
  CHECK(capture.id != 0 && !capture.invalid);
  must(device.enqueue_host(stream, [&] { ++runs; }));
  must(device.record(fork, stream));
  must(device.wait_event(side, fork));
  Capture of_side;
  must(device.capture_of(side, &of_side));
  CHECK(of_side.id == capture.id);
  must(device.enqueue_host(side, [&] { side_runs += runs; }));
  must(device.record(join, side));
  must(device.wait_event(stream, join));
  std::shared_ptr<const FakeGraph> graph;
  must(device.end_capture(stream, &graph));
  must(device.synchronize(stream));
  CHECK(runs == 0 && side_runs == 0);
  for (int i = 0; i < 3; ++i) must(device.replay(*graph, stream));
  must(device.synchronize(stream));
  CHECK(runs == 3 && side_runs == 6, runs, " ", side_runs);
  must(device.capture_of(side, &of_side));
  CHECK(of_side.id == 0);
}

TEST("a capture with a stream that is not joined back does not become a graph") {
  FakeDevice device;
  void *stream = new_stream(device), *side = new_stream(device), *event = new_event(device);
  must(device.begin_capture(stream));
  must(device.record(event, stream));
  must(device.wait_event(side, event));
  must(device.enqueue_host(side, [] {}));
  std::shared_ptr<const FakeGraph> graph;
  const Failure failure = device.end_capture(stream, &graph);
  CHECK(failure.text.find("not joined") != std::string::npos, failure.text);
}

TEST("allocations and questions during a capture are refused and spoil it") {
  FakeDevice device;
  void *stream = new_stream(device), *event = new_event(device), *data = nullptr;
  std::shared_ptr<const FakeGraph> graph;
  must(device.record(event, stream));
  for (int attempt = 0; attempt < 4; ++attempt) {
    must(device.begin_capture(stream));
    if (attempt == 0) CHECK(device.allocate(1, &data));
    if (attempt == 1) CHECK(device.query_event(event) == DeviceProgress::failed);
    if (attempt == 2) CHECK(device.wait_event(stream, event));
    if (attempt == 3) CHECK(device.synchronize(stream));
    Capture capture;
    must(device.capture_of(stream, &capture));
    CHECK(capture.invalid, attempt);
    CHECK(device.enqueue_host(stream, [] {}), attempt);
    CHECK(device.end_capture(stream, &graph), attempt);
  }
  must(device.allocate(1, &data));
}

TEST("a device that goes gives up waits that nobody ends") {
  uint64_t word = 0;
  bool ran = false;
  {
    FakeDevice device;
    void *one = new_stream(device), *other = new_stream(device), *event = new_event(device);
    must(device.wait_value(one, &word, 1));
    must(device.enqueue_host(one, [&] { ran = true; }));
    must(device.record(event, one));
    must(device.wait_event(other, event));
    must(device.destroy_stream(one));
  }
  CHECK(!ran);
}

TEST("an asked-for failure comes once, at its call, and says which") {
  FakeDevice device;
  device.fail_after(1, "an illegal memory access was encountered");
  must(device.enqueue_host(nullptr, [] {}));
  const Failure failure = device.enqueue_host(nullptr, [] {});
  CHECK(failure.kind == FailureKind::system);
  CHECK(failure.text ==
            "enqueue_host failed on GPU 0 (FAKE-0): an illegal memory access was "
            "encountered",
        failure.text);
  must(device.enqueue_host(nullptr, [] {}));
}

TEST("memory runs out at the size that was set") {
  FakeDevice device({.memory_bytes = 8192});
  void *data = nullptr, *more = nullptr;
  must(device.allocate(8192, &data));
  CHECK(device.allocate(1, &more).text.find("out of memory") != std::string::npos);
  must(device.release(data));
  must(device.allocate(1, &more));
}

TEST("with one queue a stream that waits holds what other streams are given later") {
  for (const bool one_queue : {false, true}) {
    FakeDevice device({.seed = 11, .one_queue = one_queue});
    void *first = nullptr, *second = nullptr;
    must(device.create_stream(false, &first));
    must(device.create_stream(false, &second));
    uint64_t gate = 0, before = 0, behind = 0;
    must(device.write_value(second, &before, 1));
    must(device.wait_value(first, &gate, 1));
    must(device.write_value(second, &behind, 1));
    if (one_queue) {
      while (std::atomic_ref(before).load() == 0) std::this_thread::yield();
      CHECK(device.query_stream(second) == DeviceProgress::pending);
      CHECK(std::atomic_ref(behind).load() == 0);
      std::atomic_ref(gate).store(1);
    }
    must(device.synchronize(second));
    CHECK(std::atomic_ref(behind).load() == 1, one_queue);
    std::atomic_ref(gate).store(1);
    must(device.synchronize(first));
  }
}

TEST("devices can be described in text, and what cannot be read is named") {
  const auto all =
      FakeOptions::parse("uuid=A,words=0,delay_us=20;uuid=B,memory_bytes=65536,seed=9,one_queue=1");
  CHECK(all.size() == 2);
  CHECK(all[0].uuid == "A" && !all[0].words && all[0].delay_us == 20 && all[0].ipc);
  CHECK(all[1].uuid == "B" && all[1].memory_bytes == 65536 && all[1].seed == 9);
  CHECK(all[1].one_queue && !all[0].one_queue);
  CHECK(FakeOptions::parse("").empty());
  for (const char* wrong : {"uuid", "words=yes", "colour=1", "seed=1x"}) {
    bool refused = false;
    try {
      FakeOptions::parse(wrong);
    } catch (const UsageError&) {
      refused = true;
    }
    CHECK(refused, wrong);
  }
}
