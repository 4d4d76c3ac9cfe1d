// SPDX-License-Identifier: MIT
// How a DeviceGroup comes to be: cards, the choice of the mode, words and pool. See device_group.h.
#include "base/log.h"
#include "engine/device_group.h"

namespace pycomm {
namespace {

bool shares_host(Mesh& mesh) {
  for (int peer = 0; peer < mesh.world_size(); ++peer) {
    if (peer != mesh.rank() && mesh.link(peer).transport != "shm") return false;
  }
  return true;
}

// By rank. Who is out of whose reach can only be asked when all have said which GPU they have.
std::vector<DeviceCard> gather_cards(DeviceRendezvous& rendezvous, const Device& device, int rank,
                                     DeviceCard mine) {
  auto cards = rendezvous.gather(mine);
  if (on_one_gpu(cards)) return cards;
  for (size_t peer = 0; peer < cards.size() && mine.unreached < 0; ++peer) {
    const bool other = static_cast<int>(peer) != rank;
    if (other && !device.reaches(cards[peer].uuid)) mine.unreached = static_cast<int>(peer);
  }
  return rendezvous.gather(mine);
}

// Rank 0 makes it, all map it. Fails on all ranks or on none.
Failure connect_words(DeviceRendezvous& rendezvous, Device& device, int rank, int world_size,
                      std::shared_ptr<DeviceWords>* out) {
  const size_t bytes = DeviceWords::bytes_for(world_size);
  Fd memory;
  Failure failure;
  if (rank == 0) {
    try {
      memory = create_shared_memory(bytes);
    } catch (const CommError& error) {
      failure = error.failure();
    }
  }
  if (const auto why = rendezvous.agree(failure); !why.empty()) {
    return {FailureKind::system, why, {}};
  }
  std::vector<std::vector<Fd>> passed;
  std::vector<int> mine;
  if (rank == 0) mine.push_back(memory.get());
  if (Failure not_passed = rendezvous.pass(mine, &passed)) return not_passed;
  try {
    if (rank != 0 && !passed[0].empty()) memory = std::move(passed[0].front());
    if (!memory) throw CommError({FailureKind::system, "got no memory from rank 0", {0}});
    *out = std::make_shared<DeviceWords>(device, Mapping(memory.get(), 0, bytes), rank, world_size);
  } catch (const CommError& error) {
    failure = error.failure();
  }
  const auto why = rendezvous.agree(failure);
  return why.empty() ? Failure{} : Failure{FailureKind::system, why, {}};
}

}  // namespace

std::unique_ptr<DeviceGroup> DeviceGroup::connect(Engine& engine, Device& device,
                                                  const DeviceKernels& kernels,
                                                  const DeviceGroupOptions& options) {
  std::unique_ptr<DeviceGroup> group(new DeviceGroup(engine, device));
  const DeviceScope scope(device);
  DeviceRendezvous rendezvous(engine);
  const auto cards = gather_cards(
      rendezvous, device, group->rank_,
      card_of(device.facts(), options.mode, shares_host(engine.mesh()), options.all_reduce));
  group->choice_ = choose_mode(cards);
  if (group->mode() != DeviceMode::host) {
    if (const Failure why = group->set_up(rendezvous, kernels, cards, options)) {
      group->kernels_.reset();
      group->stages_.reset();
      group->pool_.reset();
      if (group->words_ && group->words_->broken()) {
        keep_for_ever(group->words_);
      } else if (group->words_) {
        group->words_->unregister();
      }
      group->words_.reset();
      group->choice_ = {DeviceMode::host, why.text};
      log(LogLevel::warning, group->rank_,
          "the ranks' GPUs will work through memory of the host: " + why.text);
    }
  }
  if (group->words_) {
    engine.release_on_failure(group->words_, group->mode() == DeviceMode::kernel);
  }
  log(LogLevel::info, group->rank_, "devices of the group: " + group->describe());
  return group;
}

Failure DeviceGroup::set_up(DeviceRendezvous& rendezvous, const DeviceKernels& kernels,
                            const std::vector<DeviceCard>& cards,
                            const DeviceGroupOptions& options) {
  if (Failure why = connect_words(rendezvous, device_, rank_, world_size_, &words_)) return why;
  const bool meets = mode() == DeviceMode::kernel;
  if (std::string why; meets) {
    chosen_ = make_peer_plan(options.all_reduce, rank_, world_size_, &why);
    if (!why.empty()) {
      log(LogLevel::info, rank_,
          str("no kernel sums by ", options.all_reduce, ", since ", why, "; chosen by size"));
    }
  }
  const auto layout = PoolLayout::choose(cards, options.pool_bytes, [&](size_t slot_bytes) {
    return meets ? PeerKernels::bytes_for(world_size_, slot_bytes, chosen_) : 0;
  });
  if (Failure why =
          DevicePool::connect(rendezvous, device_, *words_, rank_, cards, layout, &pool_)) {
    return why;
  }
  (void)kernels.load_reduce();  // what cannot be loaded cannot be launched, which says so
  stages_ = std::make_unique<DeviceStages>(device_, kernels, *pool_, rank_, world_size_);
  if (!meets) return {};
  return PeerKernels::connect(rendezvous, device_, kernels, *pool_, *words_, rank_, world_size_,
                              chosen_, &kernels_);
}

std::string DeviceGroup::describe() const {
  std::string text = str(static_cast<char>(mode()), ": ", choice_.reason);
  if (!pool_) return text;
  if (!chosen_.algorithm.empty()) text += "; all_reduce by " + chosen_.algorithm;
  constexpr double kMib = 1024.0 * 1024.0;
  return text + str("; slots of ", static_cast<double>(pool_->slot_bytes()) / kMib, " MiB by ",
                    pool_->kind() == ShareKind::descriptor ? "file descriptor" : "IPC handle", ", ",
                    static_cast<double>(device_bytes()) / kMib, " MiB of the GPU on this rank");
}

}  // namespace pycomm
