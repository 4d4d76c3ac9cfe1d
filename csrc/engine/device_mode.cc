// SPDX-License-Identifier: MIT
#include "engine/device_mode.h"

#include <algorithm>
#include <map>

#include "kernels/device_kernels.h"

namespace pycomm {
namespace {

// What keeps this rank from stream-ordered stages; empty: nothing.
std::string obstacle(const DeviceCard& card) {
  if (!card.one_host) return "does not share memory of one host with all others";
  if (!card.words) return "has no 64-bit stream memory operations";
  if (!card.host_memory) return "cannot register memory of the host with its GPU";
  if (!card.descriptors && !card.ipc) return "cannot share memory of its GPU between processes";
  if (card.unreached >= 0) {
    return str("has no access from its GPU to that of rank ", card.unreached);
  }
  return "";
}

// What keeps kernels from waiting for one another; empty: nothing. Without obstacles to S.
std::string kernel_obstacle(std::span<const DeviceCard> cards) {
  if (cards.size() > static_cast<size_t>(kPeersMax)) {
    return str("kernels wait for one another in groups of up to ", kPeersMax, " ranks");
  }
  std::map<std::string, size_t> owners;
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    const auto [other, first] = owners.emplace(cards[rank].uuid, rank);
    if (!first) {
      return str("ranks ", other->second, " and ", rank, " share ", other->first,
                 ", where no kernel may wait for another's");
    }
    if (cards[rank].processors < kPeerBlocksMax) {
      return str("the GPU of rank ", rank, " has ", cards[rank].processors,
                 " multiprocessors, fewer than the ", kPeerBlocksMax, " blocks that wait at once");
    }
  }
  return "";
}

size_t gpus_of(std::span<const DeviceCard> cards) {
  std::map<std::string, size_t> gpus;
  for (const DeviceCard& card : cards) ++gpus[card.uuid];
  return gpus.size();
}

}  // namespace

DeviceCard card_of(const DeviceFacts& facts, char wanted, bool one_host,
                   const std::string& all_reduce) {
  DeviceCard card;
  all_reduce.copy(card.all_reduce, sizeof card.all_reduce - 1);
  facts.uuid.copy(card.uuid, sizeof card.uuid - 1);
  card.wanted = wanted;
  card.words = facts.words;
  card.host_memory = facts.host_memory;
  card.descriptors = facts.descriptors;
  card.ipc = facts.ipc;
  card.processors = facts.processors;
  card.one_host = one_host;
  return card;
}

bool on_one_gpu(std::span<const DeviceCard> cards) { return gpus_of(cards) == 1; }

ModeChoice choose_mode(std::span<const DeviceCard> cards) {
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    const auto say = [](char wanted) {
      return wanted ? str("mode ", wanted) : std::string("any mode");
    };
    PYCOMM_USAGE(cards[rank].wanted == cards[0].wanted, "rank ", rank, " asks for ",
                 say(cards[rank].wanted), " on its GPU, rank 0 for ", say(cards[0].wanted),
                 "; set the same on all ranks");
    const auto name = [](const DeviceCard& card) {
      return card.all_reduce[0] ? std::string(card.all_reduce) : std::string("the size's choice");
    };
    PYCOMM_USAGE(name(cards[rank]) == name(cards[0]), "rank ", rank, " asks for all_reduce by ",
                 name(cards[rank]), ", rank 0 by ", name(cards[0]),
                 "; set the same PYCOMM_ALGO on all ranks");
  }
  const char wanted = cards[0].wanted;
  if (wanted == static_cast<char>(DeviceMode::host)) return {DeviceMode::host, "asked for"};
  if (cards.size() == 1) return {DeviceMode::host, "the group has one rank"};
  if (cards.size() > static_cast<size_t>(kDeviceSourcesMax)) {
    return {DeviceMode::host, str("the group has more than ", kDeviceSourcesMax, " ranks")};
  }
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    const std::string why = obstacle(cards[rank]);
    if (!why.empty()) return {DeviceMode::host, str("rank ", rank, " ", why)};
  }
  const std::string why = kernel_obstacle(cards);
  const bool asked = wanted == static_cast<char>(DeviceMode::kernel);
  if (asked && !why.empty()) return {DeviceMode::host, "asked for K, but " + why};
  const size_t gpus = gpus_of(cards);
  if (gpus == 1) return {DeviceMode::stream, str(cards.size(), " ranks share ", cards[0].uuid)};
  const std::string where = str(cards.size(), " ranks on ", gpus, " GPUs that reach each other");
  if (wanted == static_cast<char>(DeviceMode::stream)) {
    return {DeviceMode::stream, where + "; asked for"};
  }
  if (!why.empty()) return {DeviceMode::stream, where + "; " + why};
  return {DeviceMode::kernel, where};
}

}  // namespace pycomm
