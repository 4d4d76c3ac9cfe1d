// SPDX-License-Identifier: MIT
// What packing a bucket on a device costs the host: one launch, from tables that are there.
//
//   core_device_bucket [tensors=50] [calls=2000] [rounds=21]
//
// The device is the fake one and its kernels return at once, so this is pycomm's own part: finding
// that the addresses are the same, and where they are not sending new ones ahead. A launch of
// CUDA's, and on CUDA the copy and the word ahead of it, come on top. Columns: case, tensors,
// median and least microseconds of a call.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bucket/device_packer.h"
#include "device/fake_device.h"
#include "timing.h"

using namespace pycomm;

namespace {

void must(const Failure& failure) {
  if (!failure) return;
  std::fprintf(stderr, "%s\n", failure.text.c_str());
  std::exit(1);
}

// Launches nothing.
class NoKernels final : public DeviceKernels {
 public:
  int reduce(const ReduceTask&, void*) const override { return kLaunched; }
  int load_reduce() const override { return kLaunched; }
  int pack(const PackTask& task, void*) const override { return last_ = task, kLaunched; }
  int unpack(const PackTask& task, void*) const override { return last_ = task, kLaunched; }
  int encode(const EncodeTask&, void*) const override { return kLaunched; }
  int sum_encoded(const SumEncodedTask&, void*) const override { return kLaunched; }
  int all_reduce_one_shot(const AllReduceTask&, void*) const override { return kLaunched; }
  int all_reduce_two_shot(const AllReduceTask&, void*) const override { return kLaunched; }
  int run_plan(const PlanTask&, void*) const override { return kLaunched; }

 private:
  mutable PackTask last_;
};

void measure(const char* what, size_t tensors, int calls, int rounds,
             const std::function<void()>& call, const std::function<void()>& between) {
  std::vector<double> us;
  for (int round = 0; round <= rounds; ++round) {
    const double seconds = once(call, calls);
    between();
    if (round > 0) us.push_back(1e6 * seconds);
  }
  const double least = *std::min_element(us.begin(), us.end());
  std::printf("%s %zu %.3f %.3f\n", what, tensors, median(us), least);
}

}  // namespace

int main(int argc, char** argv) {
  size_t tensors = 50;
  int calls = 2000, rounds = 21;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "tensors=", 8) == 0) tensors = std::strtoul(argv[i] + 8, nullptr, 10);
    if (std::strncmp(argv[i], "calls=", 6) == 0) calls = std::atoi(argv[i] + 6);
    if (std::strncmp(argv[i], "rounds=", 7) == 0) rounds = std::atoi(argv[i] + 7);
  }
  if (tensors < 1 || calls < 1 || rounds < 1) return 2;
  FakeDevice device;
  const NoKernels kernels;
  const size_t each = (size_t{25} << 20) / 4 / tensors;  // a bucket of 25 MiB
  std::vector<size_t> begins, counts(tensors, each);
  std::vector<void*> here, there;
  std::vector<float> flat(1);
  for (size_t i = 0; i < tensors; ++i) {
    begins.push_back(i * each);
    here.push_back(flat.data() + i);
    there.push_back(flat.data() + i + 1);
  }
  void *stream = nullptr, *table = nullptr;
  must(device.create_stream(false, &stream));
  DevicePacker packer(device, kernels, begins, counts);
  must(device.allocate(packer.table_bytes(), &table));
  packer.place(table);
  const DevicePacker::Sides sides{DType::float32, flat.data(), DType::float32, 0.5};
  const auto finish = [&] { must(device.synchronize(stream)); };
  measure(
      "cached", tensors, calls, rounds, [&] { must(packer.pack(sides, here, stream)); }, finish);
  bool turn = false;
  const auto moved = [&] { must(packer.pack(sides, (turn = !turn) ? there : here, stream)); };
  // Few at a time, so that the stream keeps up, as one does that has a step between.
  measure("moved", tensors, std::min(calls, 4), rounds * 20, moved, finish);
  finish();
}
