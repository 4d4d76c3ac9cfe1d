// SPDX-License-Identifier: MIT
#include "transport/host_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "base/limits.h"

namespace pycomm {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

// The number in a file of one, `otherwise` when there is no such file or it says "max".
size_t number_in(const std::string& path, size_t otherwise) {
  std::ifstream in(path);
  size_t value = 0;
  return in >> value ? value : otherwise;
}

// What stands behind a word in a file of such lines.
size_t number_after(const std::string& word, const std::string& path, size_t otherwise) {
  std::ifstream in(path);
  std::string key, line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    size_t value = 0;
    if (words >> key >> value && key == word) return value;
  }
  return otherwise;
}

size_t meminfo(const std::string& word) {
  return number_after(word, "/proc/meminfo", kUnlimited / 1024) * 1024;
}

// This process's control group or one around it, of version 1 or 2.
struct Group {
  std::string limit_file;
  std::string use_file;
  std::string statistics_file;
  std::string cache;  // the line with the files' pages that are dropped when memory is wanted

  size_t limit() const { return number_in(limit_file, kUnlimited); }
  size_t available() const {
    const size_t limit_bytes = limit();
    if (limit_bytes == kUnlimited) return kUnlimited;
    const size_t used = number_in(use_file, 0);
    const size_t droppable = number_after(cache, statistics_file, 0);
    return limit_bytes - std::min(limit_bytes, used - std::min(used, droppable));
  }
};

std::vector<Group> find_groups() {
  std::vector<Group> groups;
  std::ifstream in("/proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const auto controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && controllers != "memory") continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const std::string limit = unified ? "/memory.max" : "/memory.limit_in_bytes";
    const std::string use = unified ? "/memory.current" : "/memory.usage_in_bytes";
    for (std::string path = line.substr(second + 1);;) {
      if (path == "/") path.clear();
      groups.push_back({root + path + limit, root + path + use, root + path + "/memory.stat",
                        unified ? "inactive_file" : "total_inactive_file"});
      if (path.empty()) break;
      path.erase(path.rfind('/'));
    }
  }
  return groups;
}

const std::vector<Group>& own_groups() {
  static const std::vector<Group>* const groups = new std::vector<Group>(find_groups());
  return *groups;
}

size_t resource_limit(__rlimit_resource which) {
  rlimit limit{};
  if (::getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  return limit.rlim_cur;
}

}  // namespace

size_t memory_limit() {
  size_t limit = meminfo("MemTotal:");
  for (const auto& one : own_groups()) limit = std::min(limit, one.limit());
  return limit;
}

size_t memory_available() {
  size_t available = meminfo("MemAvailable:");
  for (const auto& one : own_groups()) available = std::min(available, one.available());
  return available;
}

size_t address_space_available() {
  const size_t limit = resource_limit(RLIMIT_AS);
  if (limit == kUnlimited) return limit;
  const size_t used = number_in("/proc/self/statm", 0) * kPageBytes;
  return limit - std::min(limit, used);
}

size_t file_size_limit() { return resource_limit(RLIMIT_FSIZE); }

}  // namespace pycomm
