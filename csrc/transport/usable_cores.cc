// SPDX-License-Identifier: MIT
#include "transport/usable_cores.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/error.h"

namespace pycomm {
namespace {

// More than the kernel's largest NR_CPUS.
constexpr int kCoresMax = 16384;

std::set<int> parse(const std::string& text) {
  std::set<int> cores;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    int first = -1, last = -1;
    char dash = 0;
    std::istringstream range(part);
    if (!(range >> first)) return {};
    if (!(range >> dash >> last)) last = first;
    if (first < 0 || last >= kCoresMax) return {};
    for (int core = first; core <= last; ++core) cores.insert(core);
  }
  return cores;
}

// The control group's path in the hierarchy that holds `controller`, or in the unified one.
std::string control_group(const std::string& controller) {
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const auto second = line.find(':'), third = line.find(':', second + 1);
    if (third == std::string::npos) continue;
    const auto names = str(",", line.substr(second + 1, third - second - 1), ",");
    if (controller.empty() ? names == ",," : names.find(str(",", controller, ",")) != names.npos) {
      return line.substr(third + 1);
    }
  }
  return {};
}

int whole_cores(double quota_us, double period_us) {
  return quota_us > 0 && period_us > 0 ? std::max(1, static_cast<int>(quota_us / period_us)) : 0;
}

// A group's limit holds for all below it.
int tightest(std::string group, int (*limit_of)(const std::string& group)) {
  int tightest = 0;
  while (true) {
    const int limit = limit_of(group);
    if (limit && (!tightest || limit < tightest)) tightest = limit;
    if (group.size() <= 1) return tightest;
    const auto slash = group.rfind('/');
    group.resize(slash == std::string::npos ? 0 : slash);
  }
}

int limit_unified(const std::string& group) {
  std::ifstream in("/sys/fs/cgroup" + group + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(in >> quota >> period) || quota == "max") return 0;
  return whole_cores(std::strtod(quota.c_str(), nullptr), period);
}

int limit_legacy(const std::string& group) {
  double quota = 0, period = 0;
  std::ifstream("/sys/fs/cgroup/cpu" + group + "/cpu.cfs_quota_us") >> quota;
  std::ifstream("/sys/fs/cgroup/cpu" + group + "/cpu.cfs_period_us") >> period;
  return whole_cores(quota, period);
}

}  // namespace

std::string usable_cores() {
  std::vector<unsigned long> bits(kCoresMax / (8 * sizeof(unsigned long)));
  auto* const set = reinterpret_cast<cpu_set_t*>(bits.data());
  const size_t bytes = bits.size() * sizeof(bits[0]);
  if (::sched_getaffinity(0, bytes, set) != 0) return {};
  std::string text;
  for (int core = 0; core < kCoresMax; ++core) {
    if (!CPU_ISSET_S(core, bytes, set)) continue;
    const int first = core;
    while (core + 1 < kCoresMax && CPU_ISSET_S(core + 1, bytes, set)) ++core;
    if (!text.empty()) text += ',';
    text += std::to_string(first);
    if (core > first) text += str("-", core);
  }
  return text;
}

int core_quota() {
  const int unified = tightest(control_group(""), limit_unified);
  return unified ? unified : tightest(control_group("cpu"), limit_legacy);
}

// Ranks that may use no core outside some set have only that set. Mostly all ranks have one set, so
// ranks are counted by set.
Crowding crowding_of(const std::vector<std::string>& cores, int quota) {
  std::map<std::string, long> ranks_with;
  for (const auto& text : cores) ++ranks_with[text];
  struct Choice {
    std::set<int> cores;
    long ranks;
  };
  std::vector<Choice> choices;
  std::set<int> all;
  for (const auto& [text, ranks] : ranks_with) {
    choices.push_back({parse(text), ranks});
    all.insert(choices.back().cores.begin(), choices.back().cores.end());
  }
  auto worst = Crowding::roomy;
  const auto judge = [&](const std::set<int>& set, long room) {
    long confined = 0;
    for (const auto& [one, ranks] : choices) {
      if (std::includes(set.begin(), set.end(), one.begin(), one.end())) confined += ranks;
    }
    const auto here = confined > room       ? Crowding::crowded
                      : 2 * confined > room ? Crowding::even
                                            : Crowding::roomy;
    worst = std::max(worst, here);
  };
  const auto size_of = [](const std::set<int>& set) { return static_cast<long>(set.size()); };
  for (const auto& choice : choices) judge(choice.cores, size_of(choice.cores));
  judge(all, quota > 0 ? std::min<long>(size_of(all), quota) : size_of(all));
  return worst;
}

}  // namespace pycomm
