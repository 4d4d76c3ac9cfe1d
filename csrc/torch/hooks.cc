// SPDX-License-Identifier: MIT
// What users of the backend ask to be told: works that end, and failures before anybody here
// learns of them.
#include <algorithm>

#include "base/log.h"
#include "torch/backend.h"

namespace pycomm {
namespace {

// c10d's one hook without an id; those of torch 2.15 count from 0.
constexpr int64_t kOnCompletion = -1;

}  // namespace

void Backend::registerOnCompletionHook(
    std::function<void(std::shared_ptr<c10d::WorkInfo>)>&& hook) {
  PYCOMM_USAGE(!onCompletionHook_, "register_on_completion_hook: this group has one already");
  onCompletionHook_ = std::move(hook);  // hasHooks() looks here
  completions_->add_hook(kOnCompletion, [hook = onCompletionHook_](const Completion& completion) {
    hook(std::make_shared<c10d::WorkInfo>(completion.info));
  });
}

// Before anybody on this rank learns of the failure, so that a hook still sees what was going on.
void AbortHooks::run(int rank) {
  std::map<int64_t, std::function<void()>> hooks;
  {
    const std::lock_guard lock(mutex);
    hooks = by_id;
  }
  for (const auto& [id, hook] : hooks) {
    try {
      hook();
    } catch (const std::exception& error) {
      log(LogLevel::error, rank, str("an abort hook failed: ", error.what()));
    }
  }
}

// Below the ids that c10d's hooks have, and the hierarchy's.
void Backend::fails_with(Backend& other) {
  const std::lock_guard lock(other.abort_hooks_->mutex);
  auto& hooks = other.abort_hooks_->by_id;
  const int64_t id = hooks.empty() ? -2 : std::min<int64_t>(hooks.begin()->first, -1) - 1;
  hooks[id] = [engine = std::weak_ptr(engine_), name = other.getGroupUid()] {
    if (const auto mine = engine.lock()) mine->abort(str("group ", name, " has failed"));
  };
}

#ifdef C10D_BACKEND_HAS_HOOKS
void Backend::registerAbortHook(int64_t id, c10d::AbortHook hook) {
  const std::lock_guard lock(abort_hooks_->mutex);
  abort_hooks_->by_id[id] = std::move(hook);
}

void Backend::unregisterAbortHook(int64_t id) {
  const std::lock_guard lock(abort_hooks_->mutex);
  abort_hooks_->by_id.erase(id);
}
#endif

#if TORCH_VERSION_MINOR >= 15
void Backend::registerCompletionHook(int64_t id, c10d::CompletionHook hook) {
  PYCOMM_USAGE(id >= 0, "register_completion_hook: got id ", id, ", expected 0 or more");
  completions_->add_hook(id, [hook = std::move(hook)](const Completion& completion) {
    if (!completion.succeeded) return;
    hook({completion.key, 1e3f * completion.info.activeDuration.count()});
  });
}
#endif

}  // namespace pycomm
