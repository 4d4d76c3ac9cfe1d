// SPDX-License-Identifier: MIT
// What fork does to arenas: the child gets private copies of the blocks that were given out, the
// parent waits until it has them, and neither sees what the other writes afterwards.
//
// The handlers run in every fork of the process from the first arena on, in the thread that forks,
// and cost nothing where no block is given out. exec without fork (posix_spawn, vfork) is not
// affected.
#pragma once

#include <mutex>

namespace pycomm {

class Arena;
class PeerArena;

// Everything that fork has to replace in the child registers itself here. Any thread.
struct ArenaFork {
  static void add(Arena* arena);
  static void remove(Arena* arena);
  static void add(PeerArena* arena);
  static void remove(PeerArena* arena);

 private:
  friend struct ArenaForkHandlers;
  static std::mutex& opening();
  static void lock(Arena& arena);
  static void unlock(Arena& arena);
  static bool in_use(const Arena& arena);
  static void make_private(Arena& arena);
  static void make_private(PeerArena& arena);
};

}  // namespace pycomm
