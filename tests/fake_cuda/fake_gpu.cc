// SPDX-License-Identifier: MIT
#include "fake_gpu.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace py = pybind11;

namespace fake_gpu {
namespace {

using pycomm::FakeDevice;

constexpr int kDevicesMax = 8;
constexpr size_t kStreamsMax = 4096;
constexpr auto kType = c10::DeviceType::PrivateUse1;

// Streams by their number in c10, 0 being the default one. Never taken down: c10 copies them
// freely.
struct Gpu {
  explicit Gpu(std::unique_ptr<FakeDevice> made) : fake(std::move(made)) {}
  const std::unique_ptr<FakeDevice> fake;
  std::mutex mutex;
  std::array<void*, kStreamsMax> streams{};
  size_t streams_made = 1, pooled = 0;
};

std::vector<Gpu*>& gpus() {
  static auto* const all = [] {
    auto* const made = new std::vector<Gpu*>;
    const char* const wanted = std::getenv("PYCOMM_TEST_FAKE_GPUS");
    int index = 0;
    for (auto& options : pycomm::FakeOptions::parse(wanted ? wanted : "uuid=FAKE-0")) {
      made->push_back(new Gpu(std::make_unique<FakeDevice>(std::move(options), index++)));
    }
    TORCH_CHECK(made->size() <= kDevicesMax, "at most ", kDevicesMax, " fake GPUs");
    return made;
  }();
  return *all;
}

thread_local c10::DeviceIndex current_index = 0;
thread_local std::array<c10::StreamId, kDevicesMax> current_ids{};

Gpu& gpu(c10::DeviceIndex index) { return *gpus().at(static_cast<size_t>(index)); }

c10::Stream stream_of(c10::DeviceIndex index, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, index), id);
}

c10::Stream new_stream(c10::DeviceIndex index) {
  Gpu& on = gpu(index);
  const std::lock_guard lock(on.mutex);
  TORCH_CHECK(on.streams_made < kStreamsMax, "too many streams of the fake GPU");
  check(on.fake->create_stream(false, &on.streams[on.streams_made]));
  return stream_of(index, static_cast<c10::StreamId>(on.streams_made++));
}

// ---- memory

struct Block {
  void* data;
  size_t bytes;
  c10::DeviceIndex index;
  void* stream;
  std::mutex mutex;
  std::vector<void*> also_used_on;
};

// Blocks that were freed, by the stream they were allocated on. As CUDA's caching allocator does, a
// block is given out again at once to whoever allocates on that stream: what the stream was given
// before comes first, and of other streams only those that were named by record_stream.
struct Cache {
  std::mutex mutex;
  std::map<std::pair<void*, size_t>, std::vector<Block*>> free;
};

Cache& cache_of(c10::DeviceIndex index) {
  static auto* const all = new std::array<Cache, kDevicesMax>;
  return all->at(static_cast<size_t>(index));
}

void release(void* context) {
  auto* const block = static_cast<Block*>(context);
  Cache& cache = cache_of(block->index);
  const std::lock_guard lock(cache.mutex);
  cache.free[{block->stream, block->bytes}].push_back(block);
}

Block* reuse(c10::DeviceIndex index, void* stream, size_t bytes) {
  Block* block = nullptr;
  {
    Cache& cache = cache_of(index);
    const std::lock_guard lock(cache.mutex);
    auto& free = cache.free[{stream, bytes}];
    if (free.empty()) return nullptr;
    block = free.back();
    free.pop_back();
  }
  FakeDevice& fake = device(index);
  for (void* other : std::exchange(block->also_used_on, {})) {
    void* event = nullptr;
    check(fake.create_event(false, &event));
    check(fake.record(event, other));
    check(fake.wait_event(stream, event));
    check(fake.destroy_event(event));
  }
  // NaN, for whoever still reads it.
  check(fake.fill(stream, block->data, 0xFF, bytes));
  return block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const auto at = c10::Device(kType, current_index);
    if (bytes == 0) return {nullptr, nullptr, &release_nothing, at};
    void* const stream = native(current_stream(current_index));
    if (Block* const block = reuse(current_index, stream, bytes)) {
      return {block->data, block, &release, at};
    }
    void* data = nullptr;
    TORCH_CHECK(posix_memalign(&data, 64, bytes) == 0, "no memory");
    return {data, new Block{data, bytes, current_index, stream, {}, {}}, &release, at};
  }
  static void release_nothing(void*) {}
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t count) const override {
    launch(current_index, [=] { std::memcpy(to, from, count); });
  }
};

Allocator& allocator() {
  static auto* const one = new Allocator;
  return *one;
}
REGISTER_ALLOCATOR(kType, &allocator());

// ---- devices, streams and events

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device to) const override {
    return {kType, std::exchange(current_index, to.index() < 0 ? current_index : to.index())};
  }
  c10::Device getDevice() const override { return {kType, current_index}; }
  void setDevice(c10::Device to) const override {
    TORCH_CHECK(to.index() < device_count(), "there is no fake GPU ", int{to.index()});
    exchangeDevice(to);
  }
  void uncheckedSetDevice(c10::Device to) const noexcept override { exchangeDevice(to); }
  c10::Stream getStream(c10::Device of) const override {
    return current_stream(of.has_index() ? of.index() : current_index);
  }
  c10::Stream getDefaultStream(c10::Device of) const override { return stream_of(of.index(), 0); }
  c10::Stream getNewStream(c10::Device of, int) const override {
    return new_stream(of.has_index() ? of.index() : current_index);
  }
  // Eight that everybody shares, as CUDA's are shared.
  c10::Stream getStreamFromGlobalPool(c10::Device of, bool) const override {
    static std::array<std::array<c10::StreamId, 8>, kDevicesMax> pool{};
    static std::mutex mutex;
    const auto index = of.has_index() ? of.index() : current_index;
    const std::lock_guard lock(mutex);
    auto& id = pool.at(static_cast<size_t>(index))[gpu(index).pooled++ % 8];
    if (id == 0) id = new_stream(index).id();
    return stream_of(index, id);
  }
  c10::Stream exchangeStream(c10::Stream to) const override {
    const auto index = to.device_index();
    return stream_of(index, std::exchange(current_ids.at(static_cast<size_t>(index)), to.id()));
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return native(stream); }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex index,
              const c10::EventFlag) const override {
    FakeDevice& fake = device(stream.device_index());
    TORCH_CHECK(index < 0 || index == stream.device_index(), "an event of another device");
    if (!*event) check(fake.create_event(true, event));
    check(fake.record(*event, native(stream)));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) check(device(stream.device_index()).wait_event(native(stream), event));
  }
  bool queryEvent(void* event) const override {
    return !event || device(current_index).query_event(event) == pycomm::DeviceProgress::done;
  }
  void destroyEvent(void* event, const c10::DeviceIndex index) const noexcept override {
    if (event) (void)device(index).destroy_event(event);
  }
  void synchronizeEvent(void* event) const override {
    if (event) check(device(current_index).synchronize_event(event));
  }
  double elapsedTime(void* begin, void* end, const c10::DeviceIndex index) const override {
    float ms = 0;
    check(device(index).elapsed_ms(begin, end, &ms));
    return ms;
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(device_count());
  }
  bool queryStream(const c10::Stream& stream) const override {
    return device(stream.device_index()).query_stream(native(stream)) ==
           pycomm::DeviceProgress::done;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    check(device(stream.device_index()).synchronize(native(stream)));
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    Gpu& on = gpu(index);
    for (size_t i = 0; i < on.streams_made; ++i) check(on.fake->synchronize(on.streams[i]));
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    if (data.get_deleter() != &release) return;
    auto* const block = static_cast<Block*>(data.get_context());
    const std::lock_guard lock(block->mutex);
    if (native(stream) != block->stream) block->also_used_on.push_back(native(stream));
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(device_count());
  }
  void setCurrentDevice(c10::DeviceIndex index) const override { current_index = index; }
  c10::DeviceIndex getCurrentDevice() const override { return current_index; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return std::exchange(current_index, index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::Storage resized = storage;
    auto fresh = allocator().allocate(bytes);
    const size_t kept = std::min(bytes, resized.nbytes());
    if (kept) {
      launch(resized.device().index(),
             [to = fresh.get(), from = resized.data(), kept] { std::memcpy(to, from, kept); });
    }
    resized.set_data_ptr_noswap(std::move(fresh));
    resized.set_nbytes(bytes);
  }
};

py::capsule capsule_of(c10::DeviceIndex index) {
  return py::capsule(static_cast<pycomm::Device*>(&device(index)), "pycomm.Device");
}

}  // namespace

int device_count() { return static_cast<int>(gpus().size()); }
FakeDevice& device(c10::DeviceIndex index) { return *gpu(index).fake; }
c10::DeviceIndex current_device() { return current_index; }

c10::Stream current_stream(c10::DeviceIndex index) {
  return stream_of(index, current_ids.at(static_cast<size_t>(index)));
}

void* native(const c10::Stream& stream) {
  return gpu(stream.device_index()).streams.at(static_cast<size_t>(stream.id()));
}

void check(const pycomm::Failure& failure) { TORCH_CHECK(!failure, failure.text); }

void launch(c10::DeviceIndex index, std::function<void()> work) {
  check(device(index).enqueue_host(native(current_stream(index)), std::move(work)));
}

void finish(c10::DeviceIndex index) {
  check(device(index).synchronize(native(current_stream(index))));
}

// A captured list of work, as torch.cuda.CUDAGraph.
struct Graph {
  c10::DeviceIndex index = 0;
  std::shared_ptr<const pycomm::FakeGraph> captured;
  void begin() {
    index = current_index;
    check(device(index).begin_capture(native(current_stream(index))));
  }
  void end() { check(device(index).end_capture(native(current_stream(index)), &captured)); }
  void replay() const {
    TORCH_CHECK(captured, "nothing was captured");
    check(device(index).replay(*captured, native(current_stream(index))));
  }
};

}  // namespace fake_gpu

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fake_gpu;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  m.def("device_count", &device_count);
  m.def("current_device", [] { return int{current_device()}; });
  m.def("set_device", [](int index) {
    TORCH_CHECK(index >= 0 && index < device_count(), "there is no fake GPU ", index);
    Guard().setDevice({kType, static_cast<c10::DeviceIndex>(index)});
  });
  m.def("synchronize", [](int index) { Guard().synchronizeDevice(int8_t(index)); }, unlocked);
  m.def("set_stream", [](int64_t id, int index) {
    Guard().exchangeStream(stream_of(static_cast<c10::DeviceIndex>(index), id));
  });
  m.def("sleep_ms", [](int ms) {
    launch(current_device(), [ms] { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); });
  });
  m.def("fail_after", [](int index, int calls, const std::string& text) {
    device(static_cast<c10::DeviceIndex>(index)).fail_after(calls, text);
  });
  m.def("capsule", [](int index) { return capsule_of(static_cast<c10::DeviceIndex>(index)); });
  py::class_<Graph>(m, "Graph")
      .def(py::init<>())
      .def("capture_begin", &Graph::begin)
      .def("capture_end", &Graph::end)
      .def("replay", &Graph::replay);
}
