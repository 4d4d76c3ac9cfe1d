// SPDX-License-Identifier: MIT
#include "engine/device_mode.h"

#include <algorithm>
#include <set>

#include "kernels/device_kernels.h"

namespace pycomm {
namespace {

// What keeps this rank from stream-ordered stages; nullptr: nothing.
const char* obstacle(const DeviceCard& card) {
  if (!card.one_host) return "does not share memory of one host with all others";
  if (!card.words) return "has no 64-bit stream memory operations";
  if (!card.host_memory) return "cannot register memory of the host with its GPU";
  if (!card.descriptors && !card.ipc) return "cannot share memory of its GPU between processes";
  return nullptr;
}

}  // namespace

DeviceCard card_of(const DeviceFacts& facts, char wanted, bool one_host) {
  DeviceCard card;
  facts.uuid.copy(card.uuid, sizeof card.uuid - 1);
  card.wanted = wanted;
  card.words = facts.words;
  card.host_memory = facts.host_memory;
  card.descriptors = facts.descriptors;
  card.ipc = facts.ipc;
  card.one_host = one_host;
  return card;
}

ModeChoice choose_mode(std::span<const DeviceCard> cards) {
  std::set<std::string> gpus;
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    const auto say = [](char wanted) {
      return wanted ? str("mode ", wanted) : std::string("any mode");
    };
    PYCOMM_USAGE(cards[rank].wanted == cards[0].wanted, "rank ", rank, " asks for ",
                 say(cards[rank].wanted), " on its GPU, rank 0 for ", say(cards[0].wanted),
                 "; set the same on all ranks");
    gpus.insert(cards[rank].uuid);
  }
  if (cards[0].wanted == static_cast<char>(DeviceMode::host))
    return {DeviceMode::host, "asked for"};
  if (cards.size() == 1) return {DeviceMode::host, "the group has one rank"};
  if (gpus.size() > 1) {
    return {DeviceMode::host, str("the ranks are on ", gpus.size(), " GPUs")};
  }
  if (cards.size() > static_cast<size_t>(kDeviceSourcesMax)) {
    return {DeviceMode::host, str("more than ", kDeviceSourcesMax, " ranks share a GPU")};
  }
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    if (const char* why = obstacle(cards[rank])) {
      return {DeviceMode::host, str("rank ", rank, " ", why)};
    }
  }
  return {DeviceMode::stream, str(cards.size(), " ranks share ", cards[0].uuid)};
}

}  // namespace pycomm
