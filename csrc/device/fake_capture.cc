// SPDX-License-Identifier: MIT
#include "device/fake_capture.h"

#include <algorithm>

namespace pycomm {

void FakeCapture::add(FakeStream* stream, FakeTask task) {
  ++members[stream].tasks;
  graph.tasks.push_back(std::move(task));
}

void FakeCapture::record(FakeStream* stream, FakeEvent& event) {
  Member& member = members[stream];
  event.capture = id;
  event.seen = member.seen;
  event.seen[stream] = member.tasks;
}

void FakeCapture::wait(FakeStream* stream, const FakeEvent& event) {
  Member& member = members[stream];
  for (const auto& [other, tasks] : event.seen) {
    size_t& seen = member.seen[other];
    seen = std::max(seen, tasks);
  }
}

bool FakeCapture::unjoined() const {
  const auto& seen = members.at(origin).seen;
  return std::any_of(members.begin(), members.end(), [&](const auto& member) {
    if (member.first == origin) return false;
    const auto at = seen.find(member.first);
    return member.second.tasks > (at == seen.end() ? 0 : at->second);
  });
}

}  // namespace pycomm
