// SPDX-License-Identifier: MIT
// The floor: what each collective costs when every buffer is mapped by every rank and each byte is
// moved once, without a library. ideal_rank WORLD forks the ranks.
//
// A call is a barrier of flags, this rank's share in one pass, another barrier; a small all_reduce
// is one exchange of inputs, which every rank adds. float32 only.
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <new>
#include <utility>

#include "rank.h"

namespace {

constexpr int kRanksMax = 8;
constexpr size_t kSideBytes = size_t{1} << 29;  // address space of a rank's input, and its output
constexpr size_t kLetterBytes = 1024;

struct alignas(64) Flag {
  std::atomic<uint64_t> epoch{0};
};
// Small inputs travel beside the flag: one exchange instead of a barrier before and one after.
struct alignas(64) Letter {
  float elements[kLetterBytes / sizeof(float)];
};
struct Shared {
  Flag flags[kRanksMax];
  Letter letters[2][kRanksMax];  // by the epoch's parity: a peer may still read the one before
};

struct Ranks {
  Shared* shared;
  std::byte* memory;
  int world;
  bool crowded;  // more ranks than cores: who waits gives way

  float* side(int rank, bool out) const {
    return reinterpret_cast<float*>(memory + (2 * static_cast<size_t>(rank) + out) * kSideBytes);
  }
};

class IdealContender final : public peers::Contender {
 public:
  IdealContender(const Ranks& ranks, int rank) : ranks_(ranks), rank_(rank) {}
  int rank() const override { return rank_; }
  int world() const override { return ranks_.world; }
  std::string version() const override { return "one pass over mapped buffers"; }
  std::byte* allocate(size_t bytes) override {
    if (bytes > kSideBytes) throw std::runtime_error("larger than the mapped memory");
    return reinterpret_cast<std::byte*>(ranks_.side(rank_, std::exchange(next_is_out_, true)));
  }
  void release(std::byte* data, size_t bytes) override {
    next_is_out_ = false;
    const size_t page = 4096;
    ::madvise(data, (bytes + page - 1) / page * page, MADV_REMOVE);
  }

  std::string prepare(const peers::Cell& cell, std::byte*, std::byte*) override {
    if (cell.dtype != "float32") return "the floor is written for float32";
    cell_ = cell;
    const auto& name = cell.collective;
    if (name == "all_reduce")
      share_ = [this] { all_reduce(); };
    else if (name == "broadcast")
      share_ = [this] { broadcast(); };
    else if (name == "all_gather")
      share_ = [this] { all_gather(); };
    else if (name == "reduce_scatter")
      share_ = [this] { reduce_scatter(); };
    else if (name == "all_to_all")
      share_ = [this] { all_to_all(); };
    else if (name == "barrier")
      share_ = nullptr;
    else
      return "no such collective";
    return "";
  }
  void call() override {
    if (cell_.collective == "all_reduce" && cell_.bytes <= kLetterBytes) return exchange();
    barrier();
    if (!share_) return;
    share_();
    barrier();
  }
  void barrier() override {
    Flag* flags = ranks_.shared->flags;
    flags[rank_].epoch.store(++epoch_, std::memory_order_release);
    for (int peer = 0; peer < ranks_.world; ++peer) {
      for (int spins = 0; flags[peer].epoch.load(std::memory_order_acquire) < epoch_; ++spins) {
        if (ranks_.crowded && spins > 20) {
          ::sched_yield();
        } else {
          __builtin_ia32_pause();
        }
      }
    }
  }

 private:
  // Sums of elements [first, last) of all inputs, in one pass; into `out`, or into every input.
  template <int kWorld>
  void sum(size_t first, size_t last, float* out) {
    float* inputs[kWorld];
    for (int peer = 0; peer < kWorld; ++peer) inputs[peer] = ranks_.side(peer, false);
#pragma GCC ivdep
    for (size_t i = first; i < last; ++i) {
      float total = inputs[0][i];
      for (int peer = 1; peer < kWorld; ++peer) total += inputs[peer][i];
      if (out) {
        out[i - first] = total;
      } else {
        for (int peer = 0; peer < kWorld; ++peer) inputs[peer][i] = total;
      }
    }
  }
  void sum(size_t first, size_t last, float* out) {
    switch (ranks_.world) {
      case 1:
        return sum<1>(first, last, out);
      case 2:
        return sum<2>(first, last, out);
      case 3:
        return sum<3>(first, last, out);
      case 4:
        return sum<4>(first, last, out);
      case 6:
        return sum<6>(first, last, out);
      default:
        return sum<8>(first, last, out);
    }
  }
  void exchange() {
    float* data = ranks_.side(rank_, false);
    Letter* letters = ranks_.shared->letters[(epoch_ + 1) % 2];
    std::memcpy(letters[rank_].elements, data, cell_.count * sizeof(float));
    barrier();
    for (size_t i = 0; i < cell_.count; ++i) {
      float sum = letters[0].elements[i];
      for (int peer = 1; peer < ranks_.world; ++peer) sum += letters[peer].elements[i];
      data[i] = sum;
    }
  }
  // This rank's part of the elements.
  std::pair<size_t, size_t> part() const {
    const auto mine = static_cast<size_t>(rank_), world = static_cast<size_t>(ranks_.world);
    return {cell_.count * mine / world, cell_.count * (mine + 1) / world};
  }
  void all_reduce() {
    const auto [first, last] = part();
    sum(first, last, nullptr);
  }
  void reduce_scatter() {
    const size_t first = cell_.block * static_cast<size_t>(rank_);
    sum(first, first + cell_.block, ranks_.side(rank_, true));
  }
  // Every core writes: each rank carries its part to all others.
  void broadcast() {
    const auto [first, last] = part();
    const float* root = ranks_.side(0, false);
    for (int peer = 1; peer < ranks_.world; ++peer) {
      copy(ranks_.side(peer, false) + first, root + first, last - first);
    }
  }
  void all_gather() {
    for (int i = 0; i < ranks_.world; ++i) {
      const int peer = (rank_ + i) % ranks_.world;
      copy(ranks_.side(rank_, true) + static_cast<size_t>(peer) * cell_.block,
           ranks_.side(peer, false), cell_.block);
    }
  }
  void all_to_all() {
    for (int i = 0; i < ranks_.world; ++i) {
      const int peer = (rank_ + i) % ranks_.world;
      copy(ranks_.side(rank_, true) + static_cast<size_t>(peer) * cell_.block,
           ranks_.side(peer, false) + static_cast<size_t>(rank_) * cell_.block, cell_.block);
    }
  }
  static void copy(float* to, const float* from, size_t count) {
    std::memcpy(to, from, count * sizeof(float));
  }

  const Ranks ranks_;
  const int rank_;
  uint64_t epoch_ = 0;
  bool next_is_out_ = false;
  peers::Cell cell_;
  std::function<void()> share_;
};

void* map_shared(size_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::runtime_error("mmap failed");
  return data;
}

}  // namespace

int main(int argc, char** argv) {
  const int world = argc > 1 ? std::atoi(argv[1]) : 0;
  if (world < 1 || world > kRanksMax || world == 5 || world == 7) {
    std::fprintf(stderr, "usage: ideal_rank WORLD, with 1, 2, 3, 4, 6 or 8 ranks\n");
    return 2;
  }
  cpu_set_t usable;
  CPU_ZERO(&usable);
  ::sched_getaffinity(0, sizeof(usable), &usable);
  const size_t memory = 2 * static_cast<size_t>(world) * kSideBytes;
  const Ranks ranks{new (map_shared(sizeof(Shared))) Shared,
                    static_cast<std::byte*>(map_shared(memory)), world, world > CPU_COUNT(&usable)};
  for (int rank = 0; rank < world; ++rank) {
    if (::fork() != 0) continue;
    pin_in_turn(rank);
    IdealContender contender(ranks, rank);
    peers::serve(contender);
    std::_Exit(0);
  }
  while (::wait(nullptr) > 0) {
  }
  return 0;
}
