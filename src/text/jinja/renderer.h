// SPDX-License-Identifier: Apache-2.0
// Floor 5. Runs a syntax tree. Statements are in render.cc, expressions in evaluate.cc, calls in calls.cc.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/jinja/args.h"
#include "text/jinja/frame.h"

namespace nibble::jinja {

class Renderer {
 public:
  // The variables are those that the caller gives; the functions of Jinja and transformers come with them.
  Renderer(Run& run, const Tree& tree, const Entries& variables);
  std::string Render();  // empty when the run failed

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  using Body = std::vector<Node*>;

  // A frame while its scope runs. Macros may keep it for longer.
  class Entered {
   public:
    Entered(Renderer& renderer, const Scope& scope, Frame* parent);
    ~Entered();
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
    Frame& operator*() { return *frame_; }

   private:
    Renderer& renderer_;
    std::unique_ptr<Frame> frame_;
  };
  void SetUp(Frame& frame);  // first values of the slots

  Flow Execute(const Body& body, Frame& frame);
  Flow Statement(const Node& node, Frame& frame);
  Flow If(const Node& node, Frame& frame);
  Flow For(const Node& node, Frame& frame);
  Flow Turns(LoopState& loop, Frame& frame, Frame* condition, bool* completed);
  Flow SetBlock(const Node& node, Frame& frame);
  Flow FilterBlock(const Node& node, Frame& frame);
  Flow With(const Node& node, Frame& frame);
  void CallBlock(const Node& node, Frame& frame);
  bool NextItem(LoopState& loop, Frame* condition, Value* item);
  void Assign(const Node& target, const Value& value, Frame& frame);
  void Write(std::string_view text);
  void WriteText(std::string_view what, const Value& v);

  Value Evaluate(const Node& node, Frame& frame);
  Value Name(const Node& node, Frame& frame);
  Value Items(const Node& node, Frame& frame);
  Value DictLiteral(const Node& node, Frame& frame);
  Value Concatenated(const Node& node, Frame& frame);
  Value Compared(const Node& node, Frame& frame);
  Value Conditional(const Node& node, Frame& frame);
  Value Subscript(const Node& node, Frame& frame);
  Value Filtered(const Node& node, Frame& frame, const Value& input);
  Value FilterChain(const Node& node, Frame& frame, const Value& input);
  Value LoopAttribute(LoopState& loop, std::string_view name);

  Args Arguments(const Node& node, Frame& frame);
  Value Call(const Node& node, Frame& frame, const Value* caller);
  Value CallMacro(const Macro& macro, Args args);
  bool BindMacro(const Node& node, Args* args, Frame& frame);
  Value CallFunction(int id, const Args& args);
  Value LoopMethod(LoopState& loop, std::string_view name, const Args& args);
  Value NewMacro(const Node& node, Frame& frame);
  Value MakeRange(const Args& args);
  Value MakeNamespace(const Args& args);
  bool CollectEntries(std::string_view callee, const Args& args, Entries* entries);
  Value TimeNow(const Args& args);

  jinja::Run& run_;
  const Tree& tree_;
  std::unordered_map<std::string, Value> context_;
  std::string* out_ = nullptr;
  // What values point to lives to the end.
  std::vector<std::unique_ptr<Frame>> frames_;
  std::vector<std::unique_ptr<Macro>> macros_;
  std::vector<std::unique_ptr<LoopState>> loops_;
  std::vector<std::unique_ptr<Entries>> namespaces_;
};

}  // namespace nibble::jinja
