// SPDX-License-Identifier: MIT
// The words of mode S: what a rank says of its calls stays to be read until every peer has read it,
// however far ahead the rank is.
#include "engine/device_words.h"

#include "check.h"
#include "device/fake_device.h"

using namespace pycomm;

namespace {

// Two ranks' words in one process.
struct Pair {
  FakeDevice device{{.uuid = "FAKE"}};
  Fd memory = create_shared_memory(DeviceWords::bytes_for(2));
  DeviceWords ahead = words(0), behind = words(1);

  DeviceWords words(int rank) {
    return {device, Mapping(memory.get(), 0, DeviceWords::bytes_for(2)), rank, 2};
  }
};

OpSignature signature_of(uint64_t call) {
  OpSignature signature;
  signature.count = call;
  return signature;
}

}  // namespace

TEST("what a rank says of a call is there for who makes it later, and for who makes it first") {
  Pair ranks;
  CHECK(!ranks.behind.published(0, 1));
  ranks.ahead.publish(1, signature_of(1));
  CHECK(!ranks.ahead.published(1, 1));
  ranks.behind.publish(1, signature_of(1));
  CHECK(ranks.behind.published(0, 1) == signature_of(1));
  CHECK(!ranks.behind.published(0, 2));
}

TEST("a rank that is far ahead waits until its peer has read what it would write over") {
  Pair ranks;
  for (uint64_t call = 1; call <= kDeviceTicketsMax; ++call) {
    CHECK(ranks.ahead.may_publish(call), call);
    ranks.ahead.publish(call, signature_of(call));
  }
  constexpr uint64_t kNext = kDeviceTicketsMax + 1;
  CHECK(ranks.ahead.laggard(kNext) == 1);
  // The peer has made its first call, and now reads what the others have said of theirs.
  ranks.behind.publish(1, signature_of(1));
  CHECK(ranks.ahead.laggard(kNext) == 1);
  CHECK(ranks.behind.published(0, 1) == signature_of(1));
  // Who makes the second has done with the first.
  ranks.behind.publish(2, signature_of(2));
  CHECK(ranks.ahead.may_publish(kNext));
  ranks.ahead.publish(kNext, signature_of(kNext));
  CHECK(ranks.behind.published(0, 2) == signature_of(2));
  CHECK(ranks.ahead.laggard(kNext + 1) == 1);
  for (uint64_t call = 3; call <= kNext; ++call) ranks.behind.publish(call, signature_of(call));
  CHECK(ranks.behind.may_publish(kNext + 1) && ranks.ahead.may_publish(kNext + 1));
}
