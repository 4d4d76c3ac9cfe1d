// SPDX-License-Identifier: MIT
// The two families of errors, and the value that carries one between threads.
//
// UsageError: the caller's mistake, thrown at the call, the group stays usable.
// CommError: the world's fault (a peer died, a deadline passed, ranks disagree); the group is dead
// afterwards and repeats its first cause. On the progress and watcher threads a failure is a
// `Failure` value; it becomes a CommError only when somebody waits. docs/errors.md lists every
// kind. Thread-safe: values.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace pycomm {

enum class FailureKind : uint8_t { none, peer_failure, mismatch, timeout, aborted, system };
const char* name_of(FailureKind kind);

struct Failure {
  FailureKind kind = FailureKind::none;
  std::string text;
  std::vector<int> ranks;  // the culprits, as ranks of the group; empty when unknown

  explicit operator bool() const { return kind != FailureKind::none; }
};

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class CommError : public std::runtime_error {
 public:
  explicit CommError(Failure failure)
      : std::runtime_error(failure.text), failure_(std::move(failure)) {}
  const Failure& failure() const { return failure_; }

 private:
  Failure failure_;
};

// Concatenates everything that can be streamed: message text without format strings.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Throws a CommError of kind `system` that ends in errno's text.
[[noreturn]] void throw_system(const std::string& what);

#define PYCOMM_USAGE(condition, ...)                                          \
  do {                                                                        \
    if (!(condition)) throw ::pycomm::UsageError(::pycomm::str(__VA_ARGS__)); \
  } while (false)

// An internal invariant; failing is a bug of pycomm and says where.
#define PYCOMM_ASSERT(condition, ...)                                                       \
  do {                                                                                      \
    if (!(condition))                                                                       \
      throw std::logic_error(::pycomm::str("pycomm bug at ", __FILE__, ":", __LINE__, ": ", \
                                           #condition, " does not hold: ", __VA_ARGS__));   \
  } while (false)

}  // namespace pycomm
