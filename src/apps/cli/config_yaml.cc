// SPDX-License-Identifier: Apache-2.0
// Reading: libyaml tells what stands in the file, event by event.
#include <yaml.h>

#include <optional>

#include "apps/cli/common.h"
#include "apps/cli/config_file.h"
#include "base/check.h"
#include "base/printable.h"

namespace nibble::cli {
namespace {

constexpr uint64_t kMaxConfigBytes = 1u << 20;

struct Event {
  yaml_event_type_t type = YAML_NO_EVENT;
  std::string text{};  // of a scalar
  bool plain = false;  // not quoted
  bool named = false;  // has an anchor or a tag
  int line = 0;
  bool null() const {
    return plain && (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL");
  }
};

class YamlReader {
 public:
  YamlReader(std::string path, const std::string& text) : path_(std::move(path)) {
    NIBBLE_CHECK(yaml_parser_initialize(&parser_) == 1, "memory for a YAML parser");
    yaml_parser_set_input_string(&parser_, reinterpret_cast<const unsigned char*>(text.data()), text.size());
  }
  ~YamlReader() { yaml_parser_delete(&parser_); }
  YamlReader(const YamlReader&) = delete;
  YamlReader& operator=(const YamlReader&) = delete;

  Result<std::vector<Setting>> Read();

 private:
  Result<Event> Next();
  Result<Setting> ReadValue(const Event& key);
  Result<std::string> Scalar(const Event& event, const std::string& key);
  Status Fail(int line, std::string_view what) const {
    return Error(Code::kInvalidArgument, "{}:{}: {}", path_, line, what);
  }
  Status Fail(const Event& event, const std::string& key, std::string_view what) const {
    return Error(Code::kInvalidArgument, "{}:{}: {}: {}", path_, event.line, Printable(key), what);
  }

  const std::string path_;
  yaml_parser_t parser_{};
};

Result<Event> YamlReader::Next() {
  yaml_event_t raw;
  if (yaml_parser_parse(&parser_, &raw) == 0) {
    // A mistake in the encoding is told by its byte, any other by its place.
    if (parser_.error == YAML_MEMORY_ERROR) return Error(Code::kOutOfMemory, "{}: no memory", path_);
    return Fail(static_cast<int>(parser_.problem_mark.line) + 1,
                fmt::format("not YAML: {}", parser_.problem == nullptr ? "?" : parser_.problem));
  }
  Event event{.type = raw.type, .line = static_cast<int>(raw.start_mark.line) + 1};
  if (raw.type == YAML_SCALAR_EVENT) {
    const auto& scalar = raw.data.scalar;
    event.text.assign(reinterpret_cast<const char*>(scalar.value), scalar.length);
    event.plain = scalar.style == YAML_PLAIN_SCALAR_STYLE;
    event.named = scalar.anchor != nullptr || scalar.tag != nullptr;
  } else if (raw.type == YAML_SEQUENCE_START_EVENT) {
    event.named = raw.data.sequence_start.anchor != nullptr || raw.data.sequence_start.tag != nullptr;
  } else if (raw.type == YAML_MAPPING_START_EVENT) {
    event.named = raw.data.mapping_start.anchor != nullptr || raw.data.mapping_start.tag != nullptr;
  }
  yaml_event_delete(&raw);
  return event;
}

Result<std::string> YamlReader::Scalar(const Event& event, const std::string& key) {
  if (event.type == YAML_ALIAS_EVENT || event.named) return Fail(event, key, "anchors and tags are not read");
  if (event.type != YAML_SCALAR_EVENT) return Fail(event, key, "wanted a value or a list of values");
  if (event.null()) return Fail(event, key, "has no value; leave the key out for the default");
  if (event.text.find('\0') != event.text.npos) return Fail(event, key, "holds a zero byte");
  return event.text;
}

Result<Setting> YamlReader::ReadValue(const Event& key) {
  Setting setting{.key = key.text, .line = key.line};
  NIBBLE_ASSIGN(Event value, Next());
  setting.list = value.type == YAML_SEQUENCE_START_EVENT && !value.named;
  if (!setting.list) {
    NIBBLE_ASSIGN(std::string text, Scalar(value, key.text));
    setting.values.push_back(std::move(text));
    return setting;
  }
  while (true) {
    NIBBLE_ASSIGN(value, Next());
    if (value.type == YAML_SEQUENCE_END_EVENT) return setting;
    NIBBLE_ASSIGN(std::string text, Scalar(value, key.text));
    setting.values.push_back(std::move(text));
  }
}

Result<std::vector<Setting>> YamlReader::Read() {
  std::vector<Setting> settings;
  NIBBLE_ASSIGN(Event event, Next());  // the start of the stream
  NIBBLE_ASSIGN(event, Next());
  if (event.type == YAML_STREAM_END_EVENT) return settings;  // nothing but comments
  NIBBLE_ASSIGN(event, Next());
  if (event.type != YAML_MAPPING_START_EVENT || event.named)
    return Fail(event.line, "wanted key: value, one a line");
  while (true) {
    NIBBLE_ASSIGN(event, Next());
    if (event.type == YAML_MAPPING_END_EVENT) break;
    if (event.type != YAML_SCALAR_EVENT || event.named)
      return Fail(event.line, "wanted the name of a setting");
    NIBBLE_ASSIGN(Setting setting, ReadValue(event));
    settings.push_back(std::move(setting));
  }
  NIBBLE_ASSIGN(event, Next());  // the end of the document
  NIBBLE_ASSIGN(event, Next());
  if (event.type != YAML_STREAM_END_EVENT) return Fail(event.line, "a second document; wanted one");
  return settings;
}

}  // namespace

Result<std::vector<Setting>> ReadSettings(const std::string& path) {
  NIBBLE_ASSIGN(const std::string text, ReadText(path, kMaxConfigBytes));
  return YamlReader(path, text).Read();
}

}  // namespace nibble::cli
