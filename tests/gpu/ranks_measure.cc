// SPDX-License-Identifier: MIT
// How long collectives of ranks that share the GPU take, beside the least that their bytes can take
// at the rate of a device-to-device copy measured here; and what this GPU answers to questions
// whose answers the design of mode S was chosen by.
#include <unistd.h>

#include <thread>

#include "ranks.h"

namespace ranks {
namespace {

constexpr size_t kMib = 1024 * 1024;

// Bytes a second of a copy that reads and writes `bytes`, counted twice.
double copy_gbs(Device& device, void* stream, size_t bytes) {
  const Memory from(device, bytes), to(device, bytes);
  must(device.fill(stream, from.data, 1, bytes));
  const double us =
      median_us(device, stream, 20, [&] { must(device.copy(stream, to.data, from.data, bytes)); });
  return 2e-3 * static_cast<double>(bytes) / us;
}

struct Row {
  Collective collective;
  size_t bytes;  // of the tensor; all blocks together
  double us[2];  // of a call, of a replay
};

double floor_us(const Row& row, int count, double gbs) {
  const auto n = static_cast<double>(count), bytes = static_cast<double>(row.bytes);
  const double moved = row.collective == Collective::all_reduce ? 2 * n * bytes : (n + 1) * bytes;
  return 1e-3 * moved / gbs;
}

// Blocks are the tensor's parts, the last region has one rank's.
Operation* operation_on(std::byte* data, Collective collective, size_t bytes, int count, int rank) {
  auto* wanted = new Operation;
  wanted->collective = collective;
  const size_t elements = bytes / sizeof(float);
  if (collective == Collective::all_reduce) {
    wanted->work = {{data, elements}};
    return wanted;
  }
  const size_t block = elements / static_cast<size_t>(count);
  for (int b = 0; b < count; ++b) {
    wanted->work.push_back({data + static_cast<size_t>(b) * block * sizeof(float), block});
  }
  wanted->work.push_back({data + static_cast<size_t>(rank) * block * sizeof(float), block});
  return wanted;
}

void measure_rows(Engine& engine, const Gpu& gpu, std::vector<Row>& rows) {
  const int rank = engine.mesh().rank(), count = engine.mesh().world_size();
  const auto group = DeviceGroup::connect(engine, *gpu.device, *gpu.kernels, {});
  if (group->mode() != DeviceMode::stream) throw std::runtime_error(group->describe());
  void* stream = nullptr;
  must(gpu.device->create_stream(true, &stream));
  for (Row& row : rows) {
    const Memory memory(*gpu.device, row.bytes);
    must(gpu.device->fill(stream, memory.data, 0, row.bytes));
    const std::unique_ptr<Operation> wanted(
        operation_on(memory.data, row.collective, row.bytes, count, rank));
    const int rounds = row.bytes > 16 * kMib ? 15 : 40;
    row.us[0] = median_us(*gpu.device, stream, rounds, [&] {
      const auto call = group->prepare(*wanted, false);
      engine.submit(call.operation);
      must(group->enqueue(call, stream));
    });
    must(gpu.device->synchronize(stream));
    const auto replay =
        gpu.capture(stream, [&] { must(group->enqueue(group->prepare(*wanted, true), stream)); });
    row.us[1] = median_us(*gpu.device, stream, rounds, replay);
  }
  must(gpu.device->synchronize(stream));
}

// One hand-over between two processes by words of the host that streams write and wait for: each
// operation takes one there and one back. `copies`: with work of each between them.
double ping_pong_us(Engine& engine, const Gpu& gpu, bool copies) {
  constexpr int kRounds = 200;
  const auto group = DeviceGroup::connect(engine, *gpu.device, *gpu.kernels, {});
  if (group->mode() != DeviceMode::stream) throw std::runtime_error(group->describe());
  void* stream = nullptr;
  must(gpu.device->create_stream(true, &stream));
  const Memory memory(*gpu.device, 4096);
  Operation wanted;
  wanted.collective = Collective::broadcast;
  wanted.work = {{memory.data, copies ? size_t{1} : size_t{0}}};
  const double us = median_us(*gpu.device, stream, 5, [&] {
    for (int round = 0; round < kRounds; ++round) {
      wanted.root = round % 2;
      const auto call = group->prepare(wanted, false);
      engine.submit(call.operation);
      must(group->enqueue(call, stream));
    }
  });
  return us / (2 * kRounds);
}

// Words of the host, mapped by both processes, in a row by spinning kernels.
double spinning_us(Engine& engine, const Gpu& gpu) {
  const int rank = engine.mesh().rank();
  DeviceRendezvous rendezvous(engine);
  Fd memory;
  if (rank == 0) memory = create_shared_memory(kPageBytes);
  std::vector<std::vector<Fd>> passed;
  std::vector<int> mine;
  if (rank == 0) mine.push_back(memory.get());
  must(rendezvous.pass(mine, &passed));
  if (rank == 1) memory = std::move(passed[0].front());
  const Mapping mapping(memory.get(), 0, kPageBytes);
  HostAllocation host;
  must(gpu.device->register_host(mapping.data(), kPageBytes, &host));
  auto* const first = static_cast<uint64_t*>(host.device);
  uint64_t* const words[2] = {first, first + 8};
  (void)rendezvous.agree({});
  const double us = spin_us(words, rank, 10);
  (void)rendezvous.agree({});
  must(gpu.device->unregister_host(host));
  return us;
}

void say(const char* question, const std::string& answer) {
  std::printf("%-72s %s\n", question, answer.c_str());
  std::fflush(stdout);
}

std::string in_us(double us) { return str(us, " us"); }

}  // namespace

int measure(bool fake, const std::string& commit) {
  double gbs = 0;
  std::string text;
  for (const int count : {2, 4, 8}) {
    std::vector<Row> rows;
    for (const size_t bytes : {size_t{4096}, kMib, 25 * kMib, 64 * kMib, 256 * kMib}) {
      if (fake && bytes > kMib) continue;
      for (const Collective collective :
           {Collective::all_reduce, Collective::all_gather, Collective::reduce_scatter}) {
        rows.push_back({collective, bytes, {}});
      }
    }
    std::vector<double> out(2 * rows.size() + 1);
    const bool right =
        run_group(count, out.data(), out.size(), [&](Engine& engine, int rank, double* shared) {
          std::string why;
          const Gpu gpu = open_gpu(fake, &why);
          auto mine = rows;
          measure_rows(engine, gpu, mine);
          if (rank != 0) return true;
          shared[0] = copy_gbs(*gpu.device, nullptr, fake ? kMib : 512 * kMib);
          for (size_t i = 0; i < mine.size(); ++i) {
            std::copy_n(mine[i].us, 2, shared + 1 + 2 * i);
          }
          return true;
        });
    if (!right) return 1;
    gbs = out[0];
    for (size_t i = 0; i < rows.size(); ++i) {
      const double us = out[1 + 2 * i], replay_us = out[2 + 2 * i];
      const double least = floor_us(rows[i], count, gbs);
      text += str(text.empty() ? "" : ",\n", "{\"collective\": \"", name_of(rows[i].collective),
                  "\", \"ranks\": ", count, ", \"bytes\": ", rows[i].bytes, ", \"us\": ", us,
                  ", \"replay_us\": ", replay_us, ", \"floor_us\": ", least,
                  ", \"of_floor\": ", least / us, "}");
    }
  }
  std::printf(
      "{\"program\": \"gpu_ranks\", \"fake\": %s, \"driver\": %d, \"commit\": \"%s\", "
      "\"copy_gbs\": %.0f, \"rows\": [\n%s\n]}\n",
      fake ? "true" : "false", fake ? 0 : driver_version(), commit.c_str(), gbs, text.c_str());
  return 0;
}

int question(bool fake) {
  run(1, nullptr, 0, [&](int, double*) {
    std::string why;
    const Gpu gpu = open_gpu(fake, &why);
    const DeviceFacts& facts = gpu.device->facts();
    const auto yes = [](bool holds) { return std::string(holds ? "yes" : "no"); };
    say("the GPU", facts.name + ", " + facts.uuid);
    say("64-bit words that streams write and wait for?", yes(facts.words));
    say("registered host memory?", yes(facts.host_memory));
    say("memory by file descriptor, as the attributes say?", yes(facts.descriptors));
    say("memory by IPC handle, as the attributes say?", yes(facts.ipc));
    const bool events = !fake && event_handles_work(&why);
    say("events for other processes?", events || fake ? yes(events) : why);
    const char* const pipe = std::getenv("CUDA_MPS_PIPE_DIRECTORY");
    const std::string control = std::string(pipe ? pipe : "/tmp/nvidia-mps") + "/control";
    say("does an MPS daemon listen?", yes(::access(control.c_str(), F_OK) == 0));
    return true;
  });
  double us = 0;
  const auto ask = [&](const char* what, const std::function<double(Engine&, const Gpu&)>& body) {
    const bool right = run_group(2, &us, 1, [&](Engine& engine, int rank, double* out) {
      std::string why;
      const Gpu gpu = open_gpu(fake, &why);
      const double mine = body(engine, gpu);
      if (rank == 0) *out = mine;
      return true;
    });
    say(what, right ? in_us(us) : "it fails");
  };
  run_group(2, nullptr, 0, [&](Engine& engine, int rank, double*) {
    std::string why;
    const Gpu gpu = open_gpu(fake, &why);
    const auto group = DeviceGroup::connect(engine, *gpu.device, *gpu.kernels, {});
    if (rank == 0) say("how two processes work together here:", group->describe());
    return true;
  });
  ask("a hand-over between two processes by stream words, no work between:",
      [](Engine& engine, const Gpu& gpu) { return ping_pong_us(engine, gpu, false); });
  ask("the same with a copy of each between, so with a switch of contexts:",
      [](Engine& engine, const Gpu& gpu) { return ping_pong_us(engine, gpu, true); });
  if (!fake) ask("the same by kernels that spin, which pycomm never does:", spinning_us);
  for (const int count : {2, 4, 8}) {
    double both[2] = {};
    const size_t bytes = fake ? kMib : 64 * kMib;
    const bool right = run_group(count, both, 2, [&](Engine& engine, int rank, double* out) {
      std::string why;
      const Gpu gpu = open_gpu(fake, &why);
      std::vector<Row> rows{{Collective::all_reduce, bytes, {}},
                            {Collective::reduce_scatter, bytes, {}},
                            {Collective::all_gather, bytes, {}}};
      measure_rows(engine, gpu, rows);
      if (rank == 0) out[0] = rows[0].us[0];
      if (rank == 0) out[1] = rows[1].us[0] + rows[2].us[0];
      return true;
    });
    say(str("all_reduce of ", bytes / kMib, " MiB by ", count,
            " ranks: one sums for all, or each its part:")
            .c_str(),
        right ? str(both[0], " us, or ", both[1], " us") : "it fails");
  }
  return 0;
}

}  // namespace ranks
