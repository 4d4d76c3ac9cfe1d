// SPDX-License-Identifier: MIT
// One rank of a contender: does what the coordinator's lines ask for, and sleeps in a read on a
// socket in between, so that it costs the others nothing while they are timed.
//
// A contender derives from Contender and calls serve(), which returns when the coordinator is gone.
// One thread; the lines are described in coordinator.py.
#pragma once

#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../pinning.h"
#include "elements.h"

namespace peers {

struct Cell {
  std::string collective;
  std::string dtype;
  size_t bytes = 0;  // of the larger side
  size_t count = 0;  // elements of the larger side
  size_t block = 0;  // elements of one rank's block
  size_t itemsize = 0;
  bool in_place = false;  // one buffer: all_reduce, broadcast, barrier
};

class Contender {
 public:
  virtual ~Contender() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  virtual std::string version() const = 0;
  // Page-aligned memory for one side of a cell.
  virtual std::byte* allocate(size_t bytes) {
    const size_t page = 4096;
    void* data = std::aligned_alloc(page, (bytes + page - 1) / page * page);
    if (!data) throw std::runtime_error("out of memory");
    return static_cast<std::byte*>(data);
  }
  virtual void release(std::byte* data, size_t) { std::free(data); }
  // Why the cell cannot be run; empty: it can, and call() does it from now on. `out` is `in` where
  // the cell is in place.
  virtual std::string prepare(const Cell& cell, std::byte* in, std::byte* out) = 0;
  virtual void call() = 0;
  virtual void barrier() = 0;
};

class Session {
 public:
  explicit Session(Contender& contender) : contender_(contender) {
    const char* path = std::getenv("PEERS_SOCKET");
    if (!path) throw std::runtime_error("PEERS_SOCKET is not set: the coordinator starts ranks");
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
      throw std::runtime_error("no coordinator at PEERS_SOCKET");
    }
    stream_ = ::fdopen(fd, "r+");
    std::setvbuf(stream_, nullptr, _IONBF, 0);
  }
  ~Session() {
    release();
    std::fclose(stream_);
  }

  void run() {
    answer("hello " + std::to_string(contender_.rank()) + " " + std::to_string(contender_.world()) +
           " " + std::to_string(::getpid()) + " " + contender_.version());
    while (true) {
      const std::string line = read_line();
      std::istringstream words(line);
      std::string command;
      words >> command;
      if (command.empty() || command == "end") return;
      if (command == "cell") set_cell(words);
      if (command == "check") check();
      if (command == "time") time(words);
    }
  }

 private:
  std::string read_line() {
    std::string line;
    char one = 0;
    while (::read(::fileno(stream_), &one, 1) == 1 && one != '\n') line += one;
    return line;
  }
  void answer(const std::string& text) {
    const std::string line = text + "\n";
    for (size_t sent = 0; sent < line.size();) {
      const auto n =
          ::send(::fileno(stream_), line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) std::exit(1);
      sent += static_cast<size_t>(n);
    }
  }
  void release() {
    if (in_) contender_.release(in_, in_bytes_);
    if (out_ && out_ != in_) contender_.release(out_, out_bytes_);
    in_ = out_ = nullptr;
  }

  void set_cell(std::istringstream& words) {
    release();
    cell_ = {};
    words >> cell_.collective >> cell_.dtype >> cell_.bytes;
    cell_.itemsize = size_of(cell_.dtype);
    if (cell_.itemsize == 0) return answer("no unknown dtype");
    cell_.count = cell_.bytes / cell_.itemsize;
    cell_.block = cell_.count / static_cast<size_t>(contender_.world());
    const auto& name = cell_.collective;
    cell_.in_place = name == "all_reduce" || name == "broadcast" || name == "barrier";
    const size_t block_bytes = cell_.block * cell_.itemsize;
    in_bytes_ = name == "all_gather" ? block_bytes : cell_.bytes;
    out_bytes_ = name == "reduce_scatter" ? block_bytes : cell_.bytes;
    in_ = contender_.allocate(in_bytes_ + 64);
    out_ = cell_.in_place ? in_ : contender_.allocate(out_bytes_ + 64);
    // Zeros stay zeros under repeated sums, and every page is there before the first call.
    std::memset(in_, 0, in_bytes_);
    std::memset(out_, 0, out_bytes_);
    const std::string reason = contender_.prepare(cell_, in_, out_);
    answer(reason.empty() ? "ok" : "no " + reason);
  }

  void fill_inputs() {
    const int rank = contender_.rank();
    const auto words = pattern_of(cell_.dtype, rank);
    if (cell_.collective != "all_to_all") {
      fill(cell_.itemsize, in_, in_bytes_ / cell_.itemsize, words, 0);
      return;
    }
    for (size_t to = 0; to < static_cast<size_t>(contender_.world()); ++to) {
      fill(cell_.itemsize, in_ + to * cell_.block * cell_.itemsize, cell_.block, words, to);
    }
  }
  size_t count_wrong_outputs() const {
    const auto rank = static_cast<size_t>(contender_.rank());
    const auto& dtype = cell_.dtype;
    const size_t size = cell_.itemsize;
    const auto sums = sum_of(dtype, contender_.world());
    if (cell_.collective == "all_reduce") return count_wrong(size, out_, cell_.count, sums, 0);
    if (cell_.collective == "reduce_scatter") {
      return count_wrong(size, out_, cell_.block, sums, rank * cell_.block);
    }
    if (cell_.collective == "broadcast") {
      return count_wrong(size, out_, cell_.count, pattern_of(dtype, 0), 0);
    }
    size_t wrong = 0;
    for (int from = 0; from < contender_.world(); ++from) {
      std::byte* block = out_ + static_cast<size_t>(from) * cell_.block * size;
      const size_t phase = cell_.collective == "all_to_all" ? rank : 0;
      wrong += count_wrong(size, block, cell_.block, pattern_of(dtype, from), phase);
    }
    return wrong;
  }
  void check() {
    size_t wrong = 0;
    if (cell_.collective == "barrier") {
      contender_.call();
    } else {
      fill_inputs();
      contender_.barrier();
      contender_.call();
      wrong = count_wrong_outputs();
      contender_.barrier();
      std::memset(in_, 0, in_bytes_);
      std::memset(out_, 0, out_bytes_);
    }
    answer("wrong " + std::to_string(wrong));
  }

  // Untimed calls first: they bring the code and, where it fits, the data back into the caches.
  void time(std::istringstream& words) {
    int warm = 0, calls = 1, samples = 1;
    words >> warm >> calls >> samples;
    for (int i = 0; i < warm; ++i) contender_.call();
    std::ostringstream text;
    text << "times";
    for (int sample = 0; sample < samples; ++sample) {
      contender_.barrier();
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) contender_.call();
      const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - begin;
      text << ' ' << took.count();
    }
    answer(text.str());
  }

  Contender& contender_;
  std::FILE* stream_ = nullptr;
  Cell cell_;
  std::byte *in_ = nullptr, *out_ = nullptr;
  size_t in_bytes_ = 0, out_bytes_ = 0;
};

inline void serve(Contender& contender) { Session(contender).run(); }

}  // namespace peers
