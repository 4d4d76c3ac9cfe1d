// SPDX-License-Identifier: MIT
// A fence between processes whose whole price is paid by one side.
//
// Two sides each write one word and then read the other's; a full fence on both between write and
// read makes sure that one of them sees the other's write. Here the side that does so a million
// times a second (a rank that sends) needs no fence at all, since the other side (a rank about to
// sleep) makes the kernel run one on every core: membarrier(2). All processes on the light side
// must have joined before. Any thread.
#pragma once

#include <atomic>

namespace pycomm {

class AsymmetricFence {
 public:
  // Makes this process one that heavy() reaches. False where the kernel cannot; any number of
  // times.
  static bool join();
  static bool joined() { return joined_.load(std::memory_order_relaxed); }

  // Keeps the compiler from moving anything across; the processor is seen to by heavy().
  static void light() { std::atomic_signal_fence(std::memory_order_seq_cst); }
  // About a microsecond. False when the kernel refused: then nothing is ordered.
  static bool heavy();

 private:
  static std::atomic<bool> joined_;
};

}  // namespace pycomm
