// SPDX-License-Identifier: MIT
// Which core a rank of a benchmark runs on: the usable ones in turn, for all contenders alike.
// Called by a rank's process before it starts threads; changes the calling thread only.
#pragma once

#include <sched.h>

inline void pin_in_turn(int rank) {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (::sched_getaffinity(0, sizeof(usable), &usable) != 0) return;
  int skip = rank % CPU_COUNT(&usable);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &usable) || skip-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ::sched_setaffinity(0, sizeof(one), &one);
    return;
  }
}
