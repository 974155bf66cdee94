// SPDX-License-Identifier: Apache-2.0
// Floor 5. TemplateProcessing for a single text; ByteLevel, which moves offsets only; Sequence of those.
#include "text/post_processor.h"

#include "base/printable.h"

namespace nibble {
namespace {

// The ids that special token `name` of a template stands for.
Status AppendSpecial(JsonRef section, std::string_view name, const FindToken& find,
                     std::vector<int32_t>* ids) {
  NIBBLE_ASSIGN(const JsonRef table, section.Get("special_tokens"));
  NIBBLE_ASSIGN(const JsonRef entry, table.Get(name));
  NIBBLE_ASSIGN(const JsonRef listed, entry.Get("ids"));
  NIBBLE_ASSIGN(const JsonRef tokens, entry.Get("tokens"));
  if (!listed.is_array() || !tokens.is_array() || listed.size() != tokens.size()) {
    return Error(Code::kInvalidArgument, "{}: wanted as many ids as tokens", entry.Where());
  }
  for (size_t i = 0; i < listed.size(); ++i) {
    NIBBLE_ASSIGN(const int64_t id, listed[i].Int(0, INT32_MAX));
    NIBBLE_ASSIGN(const std::string_view token, tokens[i].String());
    const std::optional<int32_t> known = find(token);
    if (!known || *known != id) {
      return Error(Code::kInvalidArgument, "{}: special token \"{}\" has id {} here but {} in the vocabulary",
                   listed[i].Where(), Printable(token), id, known ? std::to_string(*known) : "none");
    }
    ids->push_back(*known);
  }
  return Status();
}

Result<PostProcessor> LoadTemplate(JsonRef section, const FindToken& find) {
  NIBBLE_ASSIGN(const JsonRef single, section.Get("single"));
  if (!single.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", single.Where());
  PostProcessor p;
  int texts = 0;
  for (size_t i = 0; i < single.size(); ++i) {
    if (const auto special = single[i].Find("SpecialToken")) {
      NIBBLE_ASSIGN(const std::string_view name, special->GetString("id"));
      NIBBLE_RETURN_IF_ERROR(AppendSpecial(section, name, find, texts == 0 ? &p.before : &p.after));
      continue;
    }
    NIBBLE_ASSIGN(const JsonRef text, single[i].Get("Sequence"));
    NIBBLE_ASSIGN(const std::string_view name, text.GetString("id"));
    if (name != "A") {
      return Error(Code::kInvalidArgument, "{}: sequence {} in the template of one text", text.Where(),
                   Printable(name));
    }
    ++texts;
  }
  if (texts != 1) {
    return Error(Code::kUnsupported, "{}: the text stands {} times in its template; only once is supported",
                 single.Where(), texts);
  }
  return p;
}

}  // namespace

Result<PostProcessor> LoadPostProcessor(JsonRef section, const FindToken& find) {
  if (section.is_null()) return PostProcessor();
  NIBBLE_ASSIGN(const std::string_view type, section.GetString("type"));
  if (type == "ByteLevel") return PostProcessor();
  if (type == "TemplateProcessing") return LoadTemplate(section, find);
  if (type != "Sequence") {
    return Error(Code::kUnsupported, "{}: post_processor {} is not supported", section.Where(),
                 Printable(type));
  }
  NIBBLE_ASSIGN(const JsonRef list, section.Get("processors"));
  if (!list.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", list.Where());
  PostProcessor all;
  int templates = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    NIBBLE_ASSIGN(PostProcessor one, LoadPostProcessor(list[i], find));
    NIBBLE_ASSIGN(const std::string_view part, list[i].GetString("type"));
    templates += part != "ByteLevel";
    if (part != "ByteLevel") all = std::move(one);
  }
  if (templates > 1) {
    return Error(Code::kUnsupported, "{}: {} templates in a Sequence; one is supported", section.Where(),
                 templates);
  }
  return all;
}

}  // namespace nibble
