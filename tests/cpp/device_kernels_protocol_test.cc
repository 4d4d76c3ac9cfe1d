// SPDX-License-Identifier: MIT
// The flag protocols of peer_body.h as small state machines, walked through in every order: up to 3
// ranks, 3 calls in a row, numbers that wrap. Proved: nobody reads anything but what the call at
// hand put there, and nobody waits for ever. Every protocol has mutants, each of which must be
// caught, so that the walk is known to see.
//
// Memory is sequentially consistent here: that releases and acquires stand where they must is
// checked by the same code under the thread sanitizer, and in PTX.
#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "check.h"

namespace {

constexpr int kCalls = 3;
// Numbers have three bits and begin close to their end.
constexpr uint8_t kFirstNumber = 6;
constexpr uint8_t wrapped(int number) { return static_cast<uint8_t>(number & 7); }
constexpr bool has_come(uint8_t come, uint8_t wanted) { return wrapped(come - wanted) < 4; }

struct State {
  std::vector<uint8_t> cells;      // shared memory
  std::vector<uint8_t> registers;  // one a process
  std::vector<uint8_t> done;       // actions, by process
  auto operator<=>(const State&) const = default;
};

// One atomic step of one process: false while it has to wait. Says what is wrong in `wrong`.
using Action = std::function<bool(State& state, std::string& wrong)>;
using Process = std::vector<Action>;

struct Walk {
  size_t states = 0;
  std::string wrong;
};

Walk walk(const std::vector<Process>& processes, size_t cells, uint8_t content) {
  State begin{std::vector<uint8_t>(cells, content), std::vector<uint8_t>(processes.size()),
              std::vector<uint8_t>(processes.size())};
  std::set<State> seen{begin};
  std::deque<State> open{begin};
  Walk result;
  while (!open.empty()) {
    const State state = open.front();
    open.pop_front();
    bool moved = false, ended = true;
    for (size_t p = 0; p < processes.size(); ++p) {
      if (state.done[p] == processes[p].size()) continue;
      ended = false;
      State next = state;
      if (!processes[p][state.done[p]](next, result.wrong)) continue;
      if (!result.wrong.empty()) return result;
      moved = true;
      ++next.done[p];
      if (seen.insert(next).second) open.push_back(next);
    }
    if (!moved && !ended) {
      result.wrong = "all wait for ever";
      return result;
    }
  }
  result.states = seen.size();
  return result;
}

Action write(size_t cell, uint8_t value) {
  return [=](State& state, std::string&) {
    state.cells[cell] = value;
    return true;
  };
}
Action expect(size_t cell, uint8_t value, const char* what) {
  return [=](State& state, std::string& wrong) {
    if (state.cells[cell] != value) {
      wrong = check::join(what, ": found ", int{state.cells[cell]}, ", not ", int{value});
    }
    return true;
  };
}
using Compare = bool (*)(uint8_t come, uint8_t wanted);
Action wait(size_t cell, uint8_t number, Compare compare = has_come) {
  return [=](State& state, std::string&) { return compare(state.cells[cell], number); };
}

enum class Mutant {
  none,
  one_half,           // one_shot: calls do not take turns with the halves of the slots
  flag_first,         // signals before it has written
  no_wait_for_last,   // does not wait for the last rank
  plain_compare,      // numbers compared without regard to wrapping
  equal_compare,      // waits for exactly its number
  no_second_meeting,  // two_shot
  no_first_meeting,   // two_shot
  stale_number,       // does not count on from call to call
  no_credit,          // lanes: sends without a look at `taken`
  one_slot_more,      // lanes: sends one piece too far ahead
  taken_first,        // lanes: gives the slot back before it has read it
  sent_first,         // lanes: says that a piece is there before it is
  first_block_turns,  // take_turn: the first block raises the number of calls, not the last
  turns_at_once,      // take_turn: every block raises it
};

Compare compare_of(Mutant mutant) {
  if (mutant == Mutant::plain_compare) return [](uint8_t a, uint8_t b) { return a >= b; };
  if (mutant == Mutant::equal_compare) return [](uint8_t a, uint8_t b) { return a == b; };
  return has_come;
}

// Where things lie in a group of p: flags[owner][writer], then one_shot's slots
// [owner][half][writer], two_shot's buffers [owner][shard].
struct Cells {
  int p;
  size_t flag(int owner, int writer) const { return static_cast<size_t>(owner * p + writer); }
  size_t slot(int owner, int half, int writer) const {
    return static_cast<size_t>(p * p + (owner * 2 + half) * p + writer);
  }
  size_t buffer(int owner, int shard) const {
    return static_cast<size_t>(p * p + owner * p + shard);
  }
  size_t count() const { return static_cast<size_t>(3 * p * p); }
};

void meet(Process& process, const Cells& at, int rank, uint8_t number, Mutant mutant) {
  for (int peer = 0; peer < at.p; ++peer) {
    if (peer != rank) process.push_back(write(at.flag(peer, rank), number));
  }
  for (int peer = 0; peer < at.p; ++peer) {
    const bool last = peer == (rank == at.p - 1 ? at.p - 2 : at.p - 1);
    if (peer == rank || (last && mutant == Mutant::no_wait_for_last)) continue;
    process.push_back(wait(at.flag(rank, peer), number, compare_of(mutant)));
  }
}

Walk one_shot(int p, Mutant mutant) {
  const Cells at{p};
  std::vector<Process> ranks(static_cast<size_t>(p));
  for (int rank = 0; rank < p; ++rank) {
    Process& process = ranks[static_cast<size_t>(rank)];
    for (int call = 0; call < kCalls; ++call) {
      const int half = mutant == Mutant::one_half ? 0 : call % 2;
      const int calls_counted = mutant == Mutant::stale_number ? 1 : call + 1;
      const uint8_t number = wrapped(kFirstNumber + calls_counted);
      const auto tag = static_cast<uint8_t>(100 + call);
      const auto push = [&] {
        for (int peer = 0; peer < p; ++peer) {
          if (peer != rank) process.push_back(write(at.slot(peer, half, rank), tag));
        }
      };
      if (mutant != Mutant::flag_first) push();
      meet(process, at, rank, number, mutant);
      if (mutant == Mutant::flag_first) push();
      for (int peer = 0; peer < p; ++peer) {
        if (peer == rank) continue;
        process.push_back(expect(at.slot(rank, half, peer), tag, "one_shot reads a slot"));
      }
    }
  }
  return walk(ranks, at.count(), kFirstNumber);
}

Walk two_shot(int p, Mutant mutant) {
  const Cells at{p};
  std::vector<Process> ranks(static_cast<size_t>(p));
  for (int rank = 0; rank < p; ++rank) {
    Process& process = ranks[static_cast<size_t>(rank)];
    for (int call = 0; call < kCalls; ++call) {
      const int points = mutant == Mutant::stale_number ? 0 : 2 * call;
      const auto input = static_cast<uint8_t>(100 + call), sum = static_cast<uint8_t>(200 + call);
      for (int shard = 0; shard < p; ++shard) {
        process.push_back(write(at.buffer(rank, shard), input));
      }
      if (mutant != Mutant::no_first_meeting) {
        meet(process, at, rank, wrapped(kFirstNumber + points + 1), mutant);
      }
      for (int peer = 0; peer < p; ++peer) {
        process.push_back(expect(at.buffer(peer, rank), input, "two_shot adds"));
      }
      for (int peer = 0; peer < p; ++peer) process.push_back(write(at.buffer(peer, rank), sum));
      if (mutant != Mutant::no_second_meeting) {
        meet(process, at, rank, wrapped(kFirstNumber + points + 2), mutant);
      }
      for (int shard = 0; shard < p; ++shard) {
        process.push_back(expect(at.buffer(rank, shard), sum, "two_shot copies out"));
      }
    }
  }
  return walk(ranks, at.count(), kFirstNumber);
}

// A ring of p ranks; in each call every rank sends `burst` pieces to the next one and takes as many
// from the one before. Lane r leads from r to r + 1: sent, taken, and two slots.
Walk lanes(int p, int burst, Mutant mutant) {
  constexpr int kSlots = 2;
  const auto cell = [](int lane, int what) {
    return static_cast<size_t>(lane * (2 + kSlots) + what);
  };
  const auto slot = [&](int lane, int piece) {
    return cell(lane, 2 + (kFirstNumber + piece) % kSlots);
  };
  std::vector<Process> ranks(static_cast<size_t>(p));
  for (int rank = 0; rank < p; ++rank) {
    Process& process = ranks[static_cast<size_t>(rank)];
    const int out = rank, in = (rank + p - 1) % p;
    for (int call = 0; call < kCalls; ++call) {
      for (int piece = call * burst; piece < (call + 1) * burst; ++piece) {
        const int ahead = mutant == Mutant::one_slot_more ? kSlots : kSlots - 1;
        const uint8_t enough = wrapped(kFirstNumber + piece - ahead);
        const auto sent = write(cell(out, 0), wrapped(kFirstNumber + piece + 1));
        if (mutant != Mutant::no_credit) {
          process.push_back(wait(cell(out, 1), enough, compare_of(mutant)));
        }
        if (mutant == Mutant::sent_first) process.push_back(sent);
        process.push_back(write(slot(out, piece), static_cast<uint8_t>(100 + piece)));
        if (mutant != Mutant::sent_first) process.push_back(sent);
      }
      for (int piece = call * burst; piece < (call + 1) * burst; ++piece) {
        const uint8_t number = wrapped(kFirstNumber + piece + 1);
        const auto taken = write(cell(in, 1), number);
        process.push_back(wait(cell(in, 0), number, compare_of(mutant)));
        if (mutant == Mutant::taken_first) process.push_back(taken);
        process.push_back(
            expect(slot(in, piece), static_cast<uint8_t>(100 + piece), "a lane's end reads"));
        if (mutant != Mutant::taken_first) process.push_back(taken);
      }
    }
  }
  return walk(ranks, static_cast<size_t>(p * (2 + kSlots)), kFirstNumber);
}

// The blocks of one rank agree on the number of calls: cells are calls, entered, and how many
// blocks have left. A kernel begins when all blocks of the one before have left.
Walk turns(int blocks, Mutant mutant) {
  constexpr size_t kCallsCell = 0, kEntered = 1, kLeft = 2;
  std::vector<Process> all(static_cast<size_t>(blocks));
  for (int b = 0; b < blocks; ++b) {
    Process& process = all[static_cast<size_t>(b)];
    const auto me = static_cast<size_t>(b);
    for (int call = 0; call < kCalls; ++call) {
      process.push_back([=](State& s, std::string&) { return s.cells[kLeft] >= blocks * call; });
      process.push_back([=](State& s, std::string& wrong) {
        if (s.cells[kCallsCell] != call) wrong = "a block takes another turn than its kernel";
        return true;
      });
      process.push_back([=](State& s, std::string&) {
        s.registers[me] = ++s.cells[kEntered] == blocks;
        return true;
      });
      const bool first = mutant == Mutant::first_block_turns,
                 each = mutant == Mutant::turns_at_once;
      process.push_back([=](State& s, std::string&) {
        if (s.registers[me]) s.cells[kEntered] = 0;
        return true;
      });
      process.push_back([=](State& s, std::string&) {
        if (each || (first ? b == 0 : s.registers[me] != 0)) ++s.cells[kCallsCell];
        return true;
      });
      process.push_back([=](State& s, std::string&) {
        ++s.cells[kLeft];
        return true;
      });
    }
  }
  return walk(all, 3, 0);
}

void must_hold(const Walk& found, const char* what) {
  CHECK(found.wrong.empty(), what, ": ", found.wrong);
  CHECK(found.states > 20, what, ": ", found.states, " states");
  std::printf("%s: %zu states\n", what, found.states);
}
void must_be_caught(const Walk& found, const char* what) {
  CHECK(!found.wrong.empty(), what, " was not noticed");
}

}  // namespace

TEST("one_shot reads what its call wrote, in every order") {
  must_hold(one_shot(2, Mutant::none), "one_shot, 2 ranks");
  must_hold(one_shot(3, Mutant::none), "one_shot, 3 ranks");
}

TEST("every mutant of one_shot is caught") {
  for (int p : {2, 3}) {
    must_be_caught(one_shot(p, Mutant::one_half), "one half");
    must_be_caught(one_shot(p, Mutant::flag_first), "flag first");
    must_be_caught(one_shot(p, Mutant::no_wait_for_last), "a rank not waited for");
    must_be_caught(one_shot(p, Mutant::plain_compare), "plain compare");
    must_be_caught(one_shot(p, Mutant::equal_compare), "equal compare");
    must_be_caught(one_shot(p, Mutant::stale_number), "stale number");
  }
}

TEST("two_shot adds inputs and copies out sums of its call, in every order") {
  must_hold(two_shot(2, Mutant::none), "two_shot, 2 ranks");
  must_hold(two_shot(3, Mutant::none), "two_shot, 3 ranks");
}

TEST("every mutant of two_shot is caught") {
  for (int p : {2, 3}) {
    must_be_caught(two_shot(p, Mutant::no_first_meeting), "no first meeting");
    must_be_caught(two_shot(p, Mutant::no_second_meeting), "no second meeting");
    must_be_caught(two_shot(p, Mutant::no_wait_for_last), "a rank not waited for");
    must_be_caught(two_shot(p, Mutant::plain_compare), "plain compare");
    must_be_caught(two_shot(p, Mutant::equal_compare), "equal compare");
    must_be_caught(two_shot(p, Mutant::stale_number), "stale number");
  }
}

TEST("lanes deliver every piece once and in order, in every order") {
  must_hold(lanes(2, 1, Mutant::none), "lanes, 2 ranks");
  must_hold(lanes(2, 2, Mutant::none), "lanes, 2 ranks, bursts of 2");
  must_hold(lanes(3, 1, Mutant::none), "lanes, 3 ranks");
  must_hold(lanes(3, 2, Mutant::none), "lanes, 3 ranks, bursts of 2");
}

TEST("every mutant of lanes is caught, and so is a burst that is longer than a lane") {
  must_be_caught(lanes(2, 3, Mutant::none), "three pieces for two slots");
  for (int p : {2, 3}) {
    must_be_caught(lanes(p, 2, Mutant::no_credit), "no credit");
    must_be_caught(lanes(p, 2, Mutant::one_slot_more), "one slot more");
    must_be_caught(lanes(p, 2, Mutant::taken_first), "taken first");
    must_be_caught(lanes(p, 1, Mutant::sent_first), "sent first");
    must_be_caught(lanes(p, 2, Mutant::plain_compare), "plain compare");
    must_be_caught(lanes(p, 2, Mutant::equal_compare), "equal compare");
  }
}

TEST("blocks of one kernel take the same turn") {
  must_hold(turns(2, Mutant::none), "turns of 2 blocks");
  must_hold(turns(3, Mutant::none), "turns of 3 blocks");
  must_be_caught(turns(2, Mutant::first_block_turns), "the first block turns");
  must_be_caught(turns(2, Mutant::turns_at_once), "every block turns");
}
