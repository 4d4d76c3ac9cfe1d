// SPDX-License-Identifier: MIT
// What PYCOMM_WIRE=auto decides, see Engine::settle_wire(): the formats race on the group's own
// links, by the algorithms that would be used, so that codec, network, cores that ranks share and
// the number of steps all count as they will.
//
// Rank 0 watches the clock and says by broadcast how much is tried and what has won, so all ranks
// decide alike.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/engine.h"

namespace pycomm {
namespace {

using Clock = std::chrono::steady_clock;

class Race {
 public:
  explicit Race(Engine& engine) : engine_(engine), leads_(engine.mesh().rank() == 0) {}

  Wire winner() {
    const double links = agree(leads_ && any_slow_link() ? 1 : 0);
    if (links == 0) return Wire::fp32;
    fill(kNarrowBytesMin / sizeof(float));
    // The first call opens TCP's windows and makes the plan.
    timed(Wire::fp32);
    const double pilot_s = timed(Wire::fp32);
    const double wanted = static_cast<double>(kNarrowBytesMin) * kWireRaceS / pilot_s;
    const double bytes = agree(std::clamp(wanted, static_cast<double>(kWireRaceBytesMin),
                                          static_cast<double>(kWireRaceBytesMax)));
    fill(static_cast<size_t>(bytes) / sizeof(float));
    const double once_s = timed(Wire::fp32);
    const double rounds = agree(std::clamp(std::floor(kWireRaceS * kWireRaceRoundsMax / once_s),
                                           double{kWireRaceRoundsMin}, double{kWireRaceRoundsMax}));
    double best[] = {once_s, 1e9, 1e9};
    for (int round = 0; round < static_cast<int>(rounds); ++round) {
      for (size_t i = 0; i < std::size(kRacers); ++i)
        best[i] = std::min(best[i], timed(kRacers[i]));
    }
    return static_cast<Wire>(static_cast<int>(agree(static_cast<double>(first_of(best)))));
  }

 private:
  static constexpr Wire kRacers[] = {Wire::fp32, Wire::fp16s, Wire::bf16};

  // fp16s is eight times as exact as bf16 for the same bytes, so that it need not be the faster.
  static Wire first_of(const double (&best)[3]) {
    if (best[1] * kWireGainMin <= best[0]) return Wire::fp16s;
    return best[2] * kWireGainMin <= best[0] ? Wire::bf16 : Wire::fp32;
  }

  // Over shared memory a byte costs less than rounding it: nothing to be measured.
  bool any_slow_link() {
    Mesh& mesh = engine_.mesh();
    for (int peer = 0; peer < mesh.world_size(); ++peer) {
      if (peer != mesh.rank() && mesh.link(peer).transport != "shm") return true;
    }
    return false;
  }

  // Rank 0's number, on all ranks.
  double agree(double number) {
    auto operation = std::make_shared<Operation>();
    operation->collective = Collective::broadcast;
    operation->dtype = DType::float64;
    operation->work = {{reinterpret_cast<std::byte*>(&number), 1}};
    engine_.run(operation);
    return number;
  }

  // Values like any other: blocks of zeros would be encoded by other code.
  void fill(size_t count) {
    tensor_.resize(count);
    for (size_t i = 0; i < count; ++i) tensor_[i] = 1 + static_cast<float>(i % 977) * 1e-3f;
  }

  double timed(Wire wire) {
    auto operation = std::make_shared<Operation>();
    operation->op = ReduceOp::avg;
    operation->wire = wire;
    operation->work = {{reinterpret_cast<std::byte*>(tensor_.data()), tensor_.size()}};
    const auto begun = Clock::now();
    engine_.run(operation);
    return std::chrono::duration<double>(Clock::now() - begun).count();
  }

  Engine& engine_;
  const bool leads_;
  std::vector<float> tensor_;
};

}  // namespace

void Engine::settle_wire() {
  const std::string& mine = mesh_->address(mesh_->rank()).wire;
  for (int peer = 0; peer < mesh_->world_size(); ++peer) {
    const std::string& theirs = mesh_->address(peer).wire;
    if (peer == mesh_->rank() || theirs == mine || (theirs != kAutoWire && mine != kAutoWire)) {
      continue;
    }
    throw UsageError(
        str("PYCOMM_WIRE is ", mine, " on rank ", mesh_->rank(), " and ", theirs, " on rank ", peer,
            "; PYCOMM_WIRE, PYCOMM_ALGO and Options(wire=, algorithm=) must be the same on "
            "all ranks"));
  }
  if (mesh_->world_size() == 1 || text_of(options_.wire, options_.algorithms) != kAutoWire) return;
  programs_.set_wire(Race(*this).winner());
}

}  // namespace pycomm
