// SPDX-License-Identifier: MIT
// What tests of the arena look at: the content of a block, and what a forked child makes of it.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <functional>

namespace arena_blocks {

inline constexpr size_t kMiB = 1024 * 1024;

// The exit status of a child that runs `body`.
inline int in_child(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

inline bool all(const std::byte* data, size_t bytes, int value) {
  for (size_t i = 0; i < bytes; ++i) {
    if (data[i] != static_cast<std::byte>(value)) return false;
  }
  return true;
}

}  // namespace arena_blocks
