// SPDX-License-Identifier: MIT
#include "engine/recorder.h"

#include <cstdio>
#include <sstream>

#include "engine/signature.h"

namespace pycomm {
namespace {

// Elements of this rank's input, or of the tensor that is changed in place. plan.h lists the
// regions: a collective that moves blocks has as many of one side as ranks, and one of the other at
// the end.
uint64_t input_count(const Operation& operation) {
  const auto& work = operation.work;
  if (work.empty()) return 0;
  uint64_t count = 0;
  switch (operation.collective) {
    case Collective::all_gather:
    case Collective::gather:
      return work.back().count;
    case Collective::reduce_scatter:
    case Collective::scatter:
      for (size_t i = 0; i + 1 < work.size(); ++i) count += work[i].count;
      return count;
    case Collective::all_to_all:
      for (size_t i = 0; i < work.size() / 2; ++i) count += work[i].count;
      return count;
    default:
      return work.front().count;
  }
}

}  // namespace

Recorder::Recorder(int entries) : entries_(static_cast<size_t>(entries)) {}

double Recorder::now_us() const {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - origin_)
      .count();
}

size_t Recorder::submitted(const Operation& operation) {
  const double now = now_us();
  const std::lock_guard lock(mutex_);
  const size_t record = next_++;
  Entry& entry = entries_[record % entries_.size()];
  entry = Entry{};
  entry.sequence = operation.sequence;
  entry.count = input_count(operation);
  entry.collective = operation.collective;
  entry.op = operation.op;
  entry.dtype = operation.dtype;
  entry.root = operation.root;
  entry.peer = operation.peer;
  entry.submitted_us = now;
  return record;
}

void Recorder::renumbered(size_t record, uint64_t sequence) {
  const std::lock_guard lock(mutex_);
  if (next_ - record > entries_.size()) return;
  entries_[record % entries_.size()].sequence = sequence;
}

// An entry that has been overwritten since is left alone.
void Recorder::started(size_t record, const char* algorithm) {
  const double now = now_us();
  const std::lock_guard lock(mutex_);
  if (next_ - record > entries_.size()) return;
  Entry& entry = entries_[record % entries_.size()];
  entry.started_us = now;
  entry.algorithm = algorithm;
}

void Recorder::finished(size_t record, const Failure& failure) {
  const double now = now_us();
  const std::lock_guard lock(mutex_);
  if (next_ - record > entries_.size()) return;
  Entry& entry = entries_[record % entries_.size()];
  entry.finished_us = now;
  entry.failure = failure.kind;
}

std::string json_quote(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", static_cast<unsigned>(c));
      quoted += code;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string Recorder::to_json(int rank, int world_size, const Failure& group_failure) const {
  const std::lock_guard lock(mutex_);
  std::ostringstream out;
  out.precision(12);
  out << "{\"version\": 1, \"rank\": " << rank << ", \"world_size\": " << world_size
      << ", \"failure\": " << (group_failure ? json_quote(group_failure.text) : std::string("null"))
      << ", \"entries\": [";
  const size_t size = entries_.size();
  const size_t oldest = next_ > size ? next_ - size : 0;
  for (size_t i = oldest; i < next_; ++i) {
    const Entry& e = entries_[i % size];
    const char* state = e.failure != FailureKind::none ? "failed"
                        : e.finished_us >= 0           ? "completed"
                        : e.started_us >= 0            ? "started"
                                                       : "submitted";
    out << (i == oldest ? "\n " : ",\n ") << "{\"sequence\": " << e.sequence
        << ", \"collective\": \"" << name_of(e.collective) << "\", \"op\": \"" << name_of(e.op)
        << "\", \"dtype\": \"" << name_of(e.dtype) << "\", \"count\": " << e.count
        << ", \"root\": " << e.root << ", \"peer\": " << e.peer << ", \"algorithm\": \""
        << e.algorithm << "\", \"state\": \"" << state << "\", \"submitted_us\": " << e.submitted_us
        << ", \"started_us\": " << e.started_us << ", \"finished_us\": " << e.finished_us << "}";
  }
  out << "]}";
  return out.str();
}

}  // namespace pycomm
