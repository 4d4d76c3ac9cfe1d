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

constexpr int kRanksMax = 64;
constexpr size_t kSideBytes = size_t{1} << 29;  // address space of a rank's input, and its output
constexpr size_t kLetterBytes = 1024;
constexpr size_t kStripBytes = 4096;  // summed in the first-level cache

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
  // Elements [first, last) of `from`'s inputs, all added up strip by strip; take(strip, first,
  // count).
  template <class Take>
  void sum_strips(size_t first, size_t last, const Take& take) {
    alignas(64) float sums[kStripBytes / sizeof(float)];
    for (size_t at = first; at < last; at += std::size(sums)) {
      const size_t count = std::min(std::size(sums), last - at);
      const float* one = ranks_.side(0, false) + at;
      const float* two = ranks_.side(ranks_.world > 1 ? 1 : 0, false) + at;
      if (ranks_.world == 1)
        std::copy_n(one, count, sums);
      else
        for (size_t i = 0; i < count; ++i) sums[i] = one[i] + two[i];
      for (int peer = 2; peer < ranks_.world; ++peer) {
        const float* more = ranks_.side(peer, false) + at;
        for (size_t i = 0; i < count; ++i) sums[i] += more[i];
      }
      take(sums, at, count);
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
  void all_reduce() {
    const auto mine = static_cast<size_t>(rank_);
    const auto world = static_cast<size_t>(ranks_.world);
    const size_t first = cell_.count * mine / world, last = cell_.count * (mine + 1) / world;
    if (world == 2) {
      float *a = ranks_.side(0, false), *b = ranks_.side(1, false);
#pragma GCC ivdep
      for (size_t i = first; i < last; ++i) a[i] = b[i] = a[i] + b[i];
      return;
    }
    sum_strips(first, last, [&](const float* sums, size_t at, size_t count) {
      for (int peer = 0; peer < ranks_.world; ++peer) {
        std::memcpy(ranks_.side(peer, false) + at, sums, count * sizeof(float));
      }
    });
  }
  void reduce_scatter() {
    const size_t first = cell_.block * static_cast<size_t>(rank_);
    float* out = ranks_.side(rank_, true);
    if (ranks_.world == 2) {
      const float *a = ranks_.side(0, false) + first, *b = ranks_.side(1, false) + first;
#pragma GCC ivdep
      for (size_t i = 0; i < cell_.block; ++i) out[i] = a[i] + b[i];
      return;
    }
    sum_strips(first, first + cell_.block, [&](const float* sums, size_t at, size_t count) {
      std::memcpy(out + (at - first), sums, count * sizeof(float));
    });
  }
  void broadcast() {
    if (rank_ != 0) copy(ranks_.side(rank_, false), ranks_.side(0, false), cell_.count);
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
  if (world < 1 || world > kRanksMax) {
    std::fprintf(stderr, "usage: ideal_rank WORLD\n");
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
    peers::pin_in_turn(rank);
    IdealContender contender(ranks, rank);
    peers::serve(contender);
    std::_Exit(0);
  }
  while (::wait(nullptr) > 0) {
  }
  return 0;
}
