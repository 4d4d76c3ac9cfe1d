// SPDX-License-Identifier: MIT
#include "torch/hierarchy.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "base/limits.h"
#include "base/log.h"
#include "torch/backend.h"

namespace pycomm {
namespace {

// Null for a backend of somebody else.
Backend* ours(const Hierarchy::BackendPtr& half) { return dynamic_cast<Backend*>(half.get()); }

bool has_dtype_everywhere(DType dtype) {
  switch (dtype) {
    case DType::uint8:
    case DType::int8:
    case DType::int32:
    case DType::int64:
    case DType::float16:
    case DType::bfloat16:
    case DType::float32:
    case DType::float64:
      return true;
    default:
      return false;
  }
}

bool has_op_everywhere(ReduceOp op, DType dtype) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::product:
    case ReduceOp::min:
    case ReduceOp::max:
      return true;
    case ReduceOp::avg:
      return is_floating(dtype);
    default:
      return false;
  }
}

// At the end of a group nobody can do anything about what another backend says.
template <class Call>
void quietly(int rank, Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    log(LogLevel::warning, rank, str("at the end of a group between hosts: ", error.what()));
  }
}

}  // namespace

Hierarchy::Hierarchy(HostLayout layout, std::string between, c10::Device where, Device& device,
                     std::shared_ptr<CallbackPool> pool)
    : layout_(std::move(layout)),
      name_(std::move(between)),
      where_(where),
      stream_(c10::impl::VirtualGuardImpl(where.type()).getStreamFromGlobalPool(where, true)),
      marks_(std::make_shared<StreamMarks>(device)),
      pool_(std::move(pool)) {}

Hierarchy::~Hierarchy() = default;

void* Hierarchy::native_stream() const {
  return c10::impl::VirtualGuardImpl(where_.type()).getStreamNativeHandle(stream_);
}

void Hierarchy::set_local(BackendPtr local) {
  const std::lock_guard lock(mutex_);
  halves_.local = std::move(local);
}

void Hierarchy::set_between(BackendPtr between) {
  const std::lock_guard lock(mutex_);
  halves_.between = std::move(between);
}

Hierarchy::Halves Hierarchy::halves() const {
  const std::lock_guard lock(mutex_);
  return halves_;
}

bool Hierarchy::serves(const DeviceTensors& wanted) {
  if (!has_even_blocks(wanted)) return false;
  switch (wanted.collective) {
    case Collective::all_gather:
      return true;
    case Collective::all_reduce:
    case Collective::reduce_scatter:
      return !wanted.factor && has_dtype_everywhere(wanted.dtype) &&
             has_op_everywhere(wanted.op, wanted.dtype);
    default:
      return false;
  }
}

std::string Hierarchy::describe() const {
  std::string text =
      str(layout_.host_count(), " hosts of ", layout_.mates().size(),
          layout_.mates().size() == 1 ? " rank, " : " ranks, ", name_, " between them");
  const auto local = halves().local;
  const std::string inside = local ? ours(local)->device_mode() : std::string();
  return inside.empty() ? text : text + "; on this host " + inside;
}

std::vector<int> Hierarchy::ranks_between() const {
  std::vector<int> ranks;
  for (const auto& host : layout_.hosts) ranks.push_back(host[static_cast<size_t>(layout_.local)]);
  return ranks;
}

std::vector<int> Hierarchy::partners() const {
  std::vector<int> all = layout_.mates();
  const auto across = ranks_between();
  all.insert(all.end(), across.begin(), across.end());
  std::erase(all, layout_.rank);
  return all;
}

// The text keeps the half's own numbers, so it says what they count.
Failure Hierarchy::translated(const Failure& found, bool local) const {
  const auto ranks = local ? layout_.mates() : ranks_between();
  Failure told = found;
  std::string list;
  for (const int rank : ranks) list += str(list.empty() ? "" : ", ", rank);
  told.text = str(local ? "on this host" : str("in ", name_, " between hosts"), " (its ranks 0 to ",
                  ranks.size() - 1, " are ranks ", list, " of the group): ", found.text);
  for (int& rank : told.ranks) {
    if (rank >= 0 && rank < static_cast<int>(ranks.size())) rank = ranks[static_cast<size_t>(rank)];
  }
  return told;
}

Failure Hierarchy::failure(bool now_or_never) {
  const auto [local, between] = halves();
  if (local) {
    if (const auto found = ours(local)->engine().failure()) return translated(found, true);
  }
  if (!between) return {};
  if (Backend* const same = ours(between)) {
    const auto found = same->engine().failure();
    return found ? translated(found, false) : found;
  }
  const auto now = std::chrono::steady_clock::now();
  if (!answers_ || (!now_or_never && now - asked_ < kHalfAskedEvery)) return {};
  asked_ = now;
  try {
    if (between->getError() == c10d::ErrorType::SUCCESS) return {};
  } catch (const std::exception&) {  // c10d's own: it cannot say
    answers_ = false;
    return {};
  }
  return {FailureKind::system, str(name_, " between hosts reports an error"), {layout_.rank}};
}

Failure Hierarchy::explain(const std::exception& error, bool local) const {
  if (const auto* known = dynamic_cast<const CommError*>(&error)) {
    return translated(known->failure(), local);
  }
  const std::string words = error.what();
  return {FailureKind::system,
          str(local ? "on this host" : "between hosts, by " + name_, ": ",
              words.substr(0, words.find('\n'))),
          {layout_.rank}};
}

void Hierarchy::abort(const std::string& reason) {
  const auto [local, between] = halves();
  if (local) ours(local)->engine().abort(reason);
  if (!between) return;
  if (Backend* const same = ours(between)) {
    same->engine().abort(reason);
    return;
  }
  if (aborted_.test_and_set()) return;
  pool_->run([half = between, rank = layout_.rank] { quietly(rank, [&] { half->abort(); }); });
}

void Hierarchy::close(const std::string& reason, bool drain) {
  const auto [local, between] = halves();
  if (local) ours(local)->close(reason, drain);
  if (!between) return;
  if (Backend* const same = ours(between)) return same->close(reason, drain);
  if (closed_.test_and_set()) return;
  if (drain) {
    quietly(layout_.rank, [half = between] { half->shutdown(); });
  } else if (!aborted_.test_and_set()) {
    quietly(layout_.rank, [half = between] { half->abort(); });
  }
}

}  // namespace pycomm
