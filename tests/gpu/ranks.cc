// SPDX-License-Identifier: MIT
// `gpu_ranks question | check | measure COMMIT [fake]`: what this GPU lets processes do together;
// whether 2, 4 and 8 ranks on it get right results; how long they take, as JSON. Exits with 77
// where there is no GPU.
#include "ranks.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

namespace ranks {

void must(const Failure& failure) {
  if (failure) throw CommError(failure);
}

Memory::Memory(Device& at, size_t bytes) : device(at) {
  void* made = nullptr;
  must(device.allocate(bytes, &made));
  data = static_cast<std::byte*>(made);
}
Memory::~Memory() { (void)device.release(data); }

bool run(int count, double* out, size_t values, const std::function<bool(int, double*)>& body) {
  const size_t bytes = std::max<size_t>(values, 1) * sizeof(double);
  void* const shared =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw_system("mmap");
  std::vector<pid_t> children;
  for (int rank = 0; rank < count; ++rank) {
    const pid_t child = ::fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    bool right = false;
    try {
      ::alarm(180);  // nothing here takes as long
      right = body(rank, static_cast<double*>(shared));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %d of %d: %s\n", rank, count, error.what());
    }
    std::fflush(nullptr);
    ::_exit(right ? 0 : 1);
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    all &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  if (values) std::copy_n(static_cast<double*>(shared), values, out);
  ::munmap(shared, bytes);
  return all;
}

bool run_group(int count, double* out, size_t values,
               const std::function<bool(Engine&, int, double*)>& body) {
  connections::FileStore store;
  return run(count, out, values, [&](int rank, double* shared) {
    MeshOptions options;
    options.transports = "shm";
    EngineOptions engine_options;
    engine_options.timeout = std::chrono::seconds(60);
    Engine engine(Mesh::connect(store, rank, count, options), engine_options);
    const bool right = body(engine, rank, shared);
    engine.shutdown("the program is over", true);
    return right;
  });
}

double median_us(Device& device, void* stream, int rounds, const std::function<void()>& launch) {
  void *begin = nullptr, *end = nullptr;
  must(device.create_event(true, &begin));
  must(device.create_event(true, &end));
  std::vector<float> times;
  for (int round = -3; round < rounds; ++round) {
    must(device.record(begin, stream));
    launch();
    must(device.record(end, stream));
    must(device.synchronize_event(end));
    float ms = 0;
    must(device.elapsed_ms(begin, end, &ms));
    if (round >= 0) times.push_back(ms);
  }
  (void)device.destroy_event(begin);
  (void)device.destroy_event(end);
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  return 1e3 * static_cast<double>(times[static_cast<size_t>(rounds) / 2]);
}

}  // namespace ranks

using namespace ranks;

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const bool fake = argc > 2 && std::string(argv[argc - 1]) == "fake";
  const bool known = what == "question" || what == "check" || what == "measure";
  if (!known) {
    std::fprintf(stderr, "usage: gpu_ranks question | check | measure COMMIT [fake]\n");
    return 2;
  }
  const bool there = run(1, nullptr, 0, [&](int, double*) {
    std::string why;
    const bool opened = open_gpu(fake, &why).device != nullptr;
    if (!opened) std::printf("%s\n", why.c_str());
    return opened;
  });
  if (!there) return 77;
  if (what == "check") return check(fake);
  return what == "question" ? question(fake) : measure(fake, argc > 2 ? argv[2] : "unknown");
}
