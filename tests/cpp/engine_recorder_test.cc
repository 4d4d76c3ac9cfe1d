// SPDX-License-Identifier: MIT
// The flight recorder: what it keeps, what it overwrites, and that its dump is JSON.
#include <cctype>
#include <thread>

#include "check.h"
#include "engine/recorder.h"

using namespace pycomm;

namespace {

// A small reader of JSON: true when `text` is one whole value.
class Json {
 public:
  static bool valid(const std::string& text) {
    Json json{text};
    return json.value() && (json.space(), json.at_ == text.size());
  }

 private:
  explicit Json(const std::string& text) : text_(text) {}
  void space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  bool take(char c) {
    space();
    return at_ < text_.size() && text_[at_] == c && ++at_;
  }
  bool word(const std::string& expected) {
    if (text_.compare(at_, expected.size(), expected) != 0) return false;
    at_ += expected.size();
    return true;
  }
  bool string() {
    if (!take('"')) return false;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (static_cast<unsigned char>(text_[at_]) < 0x20) return false;
      if (text_[at_++] != '\\') continue;
      if (at_ == text_.size()) return false;
      if (text_[at_] == 'u') {
        for (int i = 1; i <= 4; ++i) {
          if (at_ + 4 >= text_.size()) return false;
          if (!std::isxdigit(static_cast<unsigned char>(text_[at_ + static_cast<size_t>(i)]))) {
            return false;
          }
        }
        at_ += 5;
      } else if (std::string("\"\\/bfnrt").find(text_[at_++]) == std::string::npos) {
        return false;
      }
    }
    return at_++ < text_.size();
  }
  bool number() {
    const size_t begin = at_;
    while (at_ < text_.size() &&
           std::string("+-.eE0123456789").find(text_[at_]) != std::string::npos) {
      ++at_;
    }
    return at_ > begin;
  }
  bool members(char end, bool named) {
    if (take(end)) return true;
    do {
      if (named && !(string() && take(':'))) return false;
      if (!value()) return false;
    } while (take(','));
    return take(end);
  }
  bool value() {
    space();
    if (at_ == text_.size()) return false;
    switch (text_[at_]) {
      case '{':
        return ++at_ && members('}', true);
      case '[':
        return ++at_ && members(']', false);
      case '"':
        return string();
      case 'n':
        return word("null");
      default:
        return number();
    }
  }
  const std::string& text_;
  size_t at_ = 0;
};

Operation& numbered(Operation& operation, uint64_t sequence, size_t count = 7) {
  operation.sequence = sequence;
  operation.work = {{nullptr, count}};
  return operation;
}

size_t occurrences(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST("text is quoted so that any JSON reader takes it") {
  CHECK(json_quote("plain") == "\"plain\"");
  CHECK(json_quote("a \"b\" \\ c") == "\"a \\\"b\\\" \\\\ c\"", json_quote("a \"b\" \\ c"));
  CHECK(json_quote("line\nbreak\ttab") == "\"line\\u000abreak\\u0009tab\"");
  CHECK(json_quote(std::string("\0\x1f", 2)) == "\"\\u0000\\u001f\"");
  for (int c = 0; c < 128; ++c) {
    CHECK(Json::valid(json_quote(std::string("x") + static_cast<char>(c) + "y")), c);
  }
  CHECK(!Json::valid("\"a\" b") && !Json::valid("{\"a\": }") && !Json::valid("\"\n\""));
}

TEST("an empty recorder is JSON too") {
  const auto json = Recorder(4).to_json(1, 3, {});
  CHECK(Json::valid(json), json);
  CHECK(json.find("\"rank\": 1, \"world_size\": 3, \"failure\": null, \"entries\": []") !=
            std::string::npos,
        json);
}

TEST("an operation passes through all states, and a group's failure is quoted") {
  Recorder recorder(8);
  Operation operation;
  const auto record = recorder.submitted(numbered(operation, 41));
  auto json = recorder.to_json(0, 2, {});
  CHECK(json.find("\"state\": \"submitted\"") != std::string::npos, json);
  CHECK(json.find("\"sequence\": 41, \"collective\": \"all_reduce\", \"op\": \"sum\", "
                  "\"dtype\": \"float32\", \"count\": 7") != std::string::npos,
        json);
  recorder.started(record, "ring");
  json = recorder.to_json(0, 2, {});
  CHECK(json.find("\"algorithm\": \"ring\", \"state\": \"started\"") != std::string::npos, json);
  recorder.finished(record, {});
  CHECK(recorder.to_json(0, 2, {}).find("\"state\": \"completed\"") != std::string::npos);
  recorder.finished(recorder.submitted(numbered(operation, 42)),
                    {FailureKind::timeout, "say \"when\"\n", {1}});
  json = recorder.to_json(0, 2, {FailureKind::timeout, "say \"when\"\n", {1}});
  CHECK(json.find("\"state\": \"failed\"") != std::string::npos, json);
  CHECK(json.find("\"failure\": \"say \\\"when\\\"\\u000a\"") != std::string::npos, json);
  CHECK(Json::valid(json), json);
}

TEST("a full ring forgets the oldest, lists the rest in order, and leaves overwritten ones alone") {
  Recorder recorder(4);
  Operation operation;
  std::vector<size_t> records;
  for (uint64_t sequence = 1; sequence <= 10; ++sequence) {
    records.push_back(recorder.submitted(numbered(operation, sequence)));
  }
  recorder.started(records[1], "overwritten");
  recorder.finished(records[5], {FailureKind::system, "overwritten", {}});
  recorder.finished(records[6], {});
  const auto json = recorder.to_json(0, 1, {});
  CHECK(Json::valid(json), json);
  CHECK(occurrences(json, "\"sequence\"") == 4, json);
  CHECK(json.find("overwritten") == std::string::npos && json.find("failed") == std::string::npos);
  size_t before = 0;
  for (const int sequence : {7, 8, 9, 10}) {
    const auto at = json.find(check::join("\"sequence\": ", sequence, ","));
    CHECK(at != std::string::npos && at > before, json);
    before = at;
  }
  CHECK(occurrences(json, "completed") == 1, json);
}

TEST("threads record and dump at the same time") {
  Recorder recorder(16);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&recorder] {
      Operation operation;
      for (uint64_t k = 0; k < 1000; ++k) {
        const auto record = recorder.submitted(numbered(operation, k));
        recorder.started(record, "direct");
        recorder.finished(record, {});
      }
    });
  }
  std::string wrong;
  for (int k = 0; k < 50; ++k) {
    const auto json = recorder.to_json(0, 1, {});
    if (!Json::valid(json)) wrong = json;
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong.empty(), wrong);
}
