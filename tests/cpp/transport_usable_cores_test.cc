// SPDX-License-Identifier: MIT
// Which cores a rank may use, and when ranks are more than the cores they have.
#include <sched.h>

#include <thread>

#include "check.h"
#include "transport/usable_cores.h"
#include "transport/waiter.h"

using namespace pycomm;

TEST("ranks are crowded when they are more than the cores that they may use") {
  using enum Crowding;
  CHECK(crowding_of({"0-3"}, 0) == roomy);
  CHECK(crowding_of({"0-3", "0-3"}, 0) == roomy);
  CHECK(crowding_of({"0-3", "0-3", "0-3"}, 0) == even);
  CHECK(crowding_of({"0-1", "0-1"}, 0) == even);
  CHECK(crowding_of({"0-1", "0-1", "0-1"}, 0) == crowded);
}

TEST("ranks that are pinned count against their own cores") {
  using enum Crowding;
  CHECK(crowding_of({"0", "1"}, 0) == even);
  CHECK(crowding_of({"0", "1", "2", "3"}, 0) == even);
  CHECK(crowding_of({"0", "0", "1-8", "1-8"}, 0) == crowded);
  CHECK(crowding_of({"0,2", "1,3"}, 0) == roomy);
  CHECK(crowding_of({"0-1,4", "0-1,4", "0"}, 0) == even);
}

TEST("a quota of processor time counts like as many cores") {
  using enum Crowding;
  CHECK(crowding_of({"0-63", "0-63"}, 0) == roomy);
  CHECK(crowding_of({"0-63", "0-63"}, 2) == even);
  CHECK(crowding_of({"0-63", "0-63"}, 1) == crowded);
  CHECK(crowding_of({"0", "1"}, 64) == even);
}

TEST("text that names no cores gives no room") {
  for (const auto* text : {"", "x", "-1", "0-99999999"}) {
    CHECK(crowding_of({text}, 0) == Crowding::crowded, text);
  }
}

TEST("the affinity of the calling thread is told in the kernel's form") {
  cpu_set_t before;
  CHECK(::sched_getaffinity(0, sizeof(before), &before) == 0);
  CHECK(!usable_cores().empty());
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  std::string pinned;
  std::thread([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    if (::sched_setaffinity(0, sizeof(one), &one) == 0) pinned = usable_cores();
  }).join();
  CHECK(pinned == std::to_string(first), pinned);
  CHECK(core_quota() >= 0);
}

TEST("who waits for sockets gives the core away early, also where each rank seems to have one") {
  for (const auto crowding : {Crowding::roomy, Crowding::even, Crowding::crowded}) {
    const auto policy = wait_policy_for(crowding, WaitRole::caller, true);
    CHECK(policy.polls <= kPollsSockets && policy.spins == 0 && policy.yields > 0us);
  }
  CHECK(wait_policy_for(Crowding::even, WaitRole::caller, false).spins == kSpins);
}
