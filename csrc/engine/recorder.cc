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

size_t Recorder::submitted(const Operation& operation) {
  const size_t record = next_.fetch_add(1, std::memory_order_relaxed);
  Entry& entry = entries_[record % entries_.size()];
  const auto set = [](auto& field, auto value) { field.store(value, std::memory_order_relaxed); };
  set(entry.holds, 0u);
  std::atomic_thread_fence(std::memory_order_release);
  set(entry.sequence, operation.sequence.load(std::memory_order_relaxed));
  set(entry.count, input_count(operation));
  set(entry.collective, operation.collective);
  set(entry.op, operation.op);
  set(entry.dtype, operation.dtype);
  set(entry.failure, FailureKind::none);
  set(entry.root, operation.root);
  set(entry.peer, operation.peer);
  set(entry.algorithm, static_cast<const char*>(""));
  set(entry.submitted, ticks());
  set(entry.started, uint64_t{0});
  set(entry.finished, uint64_t{0});
  entry.holds.store(mark_of(record), std::memory_order_release);
  return record;
}

// Null when it has been overwritten.
Recorder::Entry* Recorder::entry_of(size_t record) {
  Entry& entry = entries_[record % entries_.size()];
  return entry.holds.load(std::memory_order_relaxed) == mark_of(record) ? &entry : nullptr;
}

void Recorder::renumbered(size_t record, uint64_t sequence) {
  if (Entry* entry = entry_of(record)) entry->sequence.store(sequence, std::memory_order_relaxed);
}

void Recorder::started(size_t record, const char* algorithm) {
  Entry* entry = entry_of(record);
  if (!entry) return;
  entry->algorithm.store(algorithm, std::memory_order_relaxed);
  entry->started.store(ticks(), std::memory_order_relaxed);
}

void Recorder::finished(size_t record, const Failure& failure) {
  Entry* entry = entry_of(record);
  if (!entry) return;
  entry->failure.store(failure.kind, std::memory_order_relaxed);
  entry->finished.store(ticks(), std::memory_order_relaxed);
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

// Empty when the entry is being rewritten, or was while we read.
std::string Recorder::describe(size_t record, double us_per_tick) const {
  const Entry& entry = entries_[record % entries_.size()];
  if (entry.holds.load(std::memory_order_acquire) != mark_of(record)) return {};
  const auto get = [](const auto& field) { return field.load(std::memory_order_relaxed); };
  const auto us = [&](uint64_t at) {
    return at ? static_cast<double>(at - scale_.origin()) * us_per_tick : -1.0;
  };
  const auto failure = get(entry.failure);
  const auto started = get(entry.started), finished = get(entry.finished);
  const char* state = failure != FailureKind::none ? "failed"
                      : finished                   ? "completed"
                      : started                    ? "started"
                                                   : "submitted";
  std::ostringstream out;
  out.precision(12);
  out << "{\"sequence\": " << get(entry.sequence) << ", \"collective\": \""
      << name_of(get(entry.collective)) << "\", \"op\": \"" << name_of(get(entry.op))
      << "\", \"dtype\": \"" << name_of(get(entry.dtype)) << "\", \"count\": " << get(entry.count)
      << ", \"root\": " << get(entry.root) << ", \"peer\": " << get(entry.peer)
      << ", \"algorithm\": \"" << get(entry.algorithm) << "\", \"state\": \"" << state
      << "\", \"submitted_us\": " << us(get(entry.submitted)) << ", \"started_us\": " << us(started)
      << ", \"finished_us\": " << us(finished) << "}";
  std::atomic_thread_fence(std::memory_order_acquire);
  if (get(entry.holds) != mark_of(record)) return {};
  return out.str();
}

std::string Recorder::to_json(int rank, int world_size, const Failure& group_failure) const {
  std::string text =
      str("{\"version\": 1, \"rank\": ", rank, ", \"world_size\": ", world_size,
          ", \"failure\": ", group_failure ? json_quote(group_failure.text) : std::string("null"),
          ", \"entries\": [");
  const size_t next = next_.load(std::memory_order_acquire);
  const size_t oldest = next > entries_.size() ? next - entries_.size() : 0;
  const double us_per_tick = scale_.us_per_tick();
  const char* between = "\n ";
  for (size_t record = oldest; record < next; ++record) {
    const auto entry = describe(record, us_per_tick);
    if (entry.empty()) continue;
    text += between + entry;
    between = ",\n ";
  }
  return text + "]}";
}

}  // namespace pycomm
