// SPDX-License-Identifier: Apache-2.0
#include "apps/server/tool_calls.h"

#include "apps/server/json_text.h"
#include "apps/server/log.h"
#include "text/json_schema.h"

namespace nibble::server {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>", kArrayMark = "[TOOL_CALLS]";
constexpr const char* kProbe = "nibble_probe";

// Where a call may begin, at the end of what is there already; npos: nowhere.
size_t FindOpen(std::string_view text) {
  if (const size_t whole = text.find(kOpen); whole != text.npos) return whole;
  for (size_t n = std::min(text.size(), kOpen.size() - 1); n > 0; --n)
    if (text.ends_with(kOpen.substr(0, n))) return text.size() - n;
  return text.npos;
}

bool AddCall(JsonRef value, std::vector<ToolCall>* calls) {
  const auto name = value.GetStringOr("name", "");
  auto arguments = value.Find("arguments");
  if (!arguments) arguments = value.Find("parameters");
  if (!name.ok() || name->empty() || !arguments || !arguments->is_object()) return false;
  calls->push_back({std::string(*name), ToText(*arguments)});
  return true;
}

// One call, or an array of calls.
bool ParseCalls(std::string_view text, std::vector<ToolCall>* calls) {
  const auto json = Json::Parse(text, {}, "tool call");
  if (!json.ok()) return false;
  const JsonRef root = json->root();
  if (!root.is_array()) return AddCall(root, calls);
  for (size_t i = 0; i < root.size(); ++i)
    if (!AddCall(root[i], calls)) return false;
  return root.size() > 0;
}

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

}  // namespace

ToolSyntax DetectToolSyntax(const ChatTemplate& chat) {
  using jinja::Value;
  const auto text = [](const char* word) { return Value::String(word); };
  Value arguments = Value::Dict({{text("x"), text("y")}});
  Value function = Value::Dict({{text("name"), text(kProbe)}, {text("arguments"), std::move(arguments)}});
  Value call = Value::Dict({{text("id"), text("abcdefghi")},
                            {text("type"), text("function")},
                            {text("function"), std::move(function)}});
  Value past = Value::Dict({{text("role"), text("assistant")},
                            {text("content"), text("")},
                            {text("tool_calls"), Value::List({std::move(call)})}});
  ChatInput input;
  input.messages = Value::List({ChatMessage("user", "x"), std::move(past)});
  const auto rendered = chat.Render(input);
  if (!rendered.ok()) return ToolSyntax::kObject;
  const size_t at = rendered->find(kProbe);
  if (at == rendered->npos) return ToolSyntax::kObject;
  const std::string_view before = std::string_view(*rendered).substr(0, at);
  if (before.find(kOpen) != before.npos) return ToolSyntax::kTagged;
  return before.find(kArrayMark) != before.npos ? ToolSyntax::kArray : ToolSyntax::kObject;
}

std::string ToolText::Push(std::string_view text) {
  if (syntax_ == ToolSyntax::kNone) return std::string(text);
  held_ += text;
  if (in_call_) return "";
  std::string content;
  if (syntax_ == ToolSyntax::kTagged) {
    const size_t open = FindOpen(held_);
    content = held_.substr(0, open);
    held_.erase(0, content.size());
    in_call_ = std::string_view(held_).starts_with(kOpen);
    return content;
  }
  // The whole answer is a call or none of it is, which its first character shows.
  const std::string_view trimmed = Trim(held_);
  if (trimmed.empty()) return "";
  in_call_ = trimmed[0] == '[' || trimmed[0] == '{';
  if (!in_call_) content.swap(held_);
  return content;
}

ToolText::Rest ToolText::Finish() {
  Rest rest;
  std::string_view text = held_;
  if (syntax_ == ToolSyntax::kTagged) {
    while (in_call_) {
      const size_t open = text.find(kOpen);
      if (open == text.npos) break;
      const size_t begin = open + kOpen.size();
      const size_t close = std::min(text.find(kClose, begin), text.size());
      if (!ParseCalls(Trim(text.substr(begin, close - begin)), &rest.calls)) break;
      text.remove_prefix(std::min(text.size(), close + kClose.size()));
    }
    rest.content = rest.calls.empty() ? std::string(text) : std::string(Trim(text));
  } else {
    std::string_view call = Trim(text);
    if (call.starts_with(kArrayMark)) call.remove_prefix(kArrayMark.size());
    if (!in_call_ || !ParseCalls(Trim(call), &rest.calls)) {
      rest.calls.clear();
      rest.content = text;
    }
  }
  held_.clear();
  return rest;
}

std::string ToolCallsJson(const std::vector<ToolCall>& calls, std::string_view answer_id, bool indexed) {
  std::string out = "[";
  for (size_t i = 0; i < calls.size(); ++i) {
    out +=
        fmt::format(R"({}{{{}"id":"call_{}_{}","type":"function","function":{{"name":{},"arguments":{}}}}})",
                    i > 0 ? "," : "", indexed ? fmt::format("\"index\":{},", i) : "", answer_id, i,
                    Quoted(calls[i].name), Quoted(calls[i].arguments));
  }
  return out + "]";
}

Result<std::shared_ptr<Constraint>> ToolConstraint(ToolSyntax syntax, const std::vector<Tool>& tools,
                                                   std::shared_ptr<const TokenTrie> trie) {
  const char* key = syntax == ToolSyntax::kObject ? "parameters" : "arguments";
  std::string schema = R"({"anyOf":[)";
  for (const Tool& tool : tools) {
    schema += fmt::format(
        R"({}{{"type":"object","properties":{{"name":{{"const":{}}},"{}":{}}},"required":["name","{}"],"additionalProperties":false}})",
        schema.back() == '[' ? "" : ",", Quoted(tool.name), key,
        tool.parameters == "{}" ? R"({"type":"object"})" : tool.parameters, key);
  }
  schema += "]}";
  auto compiled = CompileJsonSchema(schema);
  if (!compiled.ok())
    return Error(Code::kInvalidArgument, "tools: the parameters cannot be compiled: {}",
                 compiled.status().message());
  Grammar& grammar = compiled->grammar;
  const bool array = syntax == ToolSyntax::kArray, tagged = syntax == ToolSyntax::kTagged;
  const int root = grammar.AddRule("tool call");
  grammar.Define(root, grammar.Sequence({grammar.Literal(tagged  ? "<tool_call>\n"
                                                         : array ? "["
                                                                 : ""),
                                         grammar.Call(grammar.root()),
                                         grammar.Literal(tagged  ? "\n</tool_call>"
                                                         : array ? "]"
                                                                 : "")}));
  grammar.SetRoot(root);
  return Constraint::Make(grammar, std::move(trie));
}

}  // namespace nibble::server
