// SPDX-License-Identifier: Apache-2.0
// Floor 5. A mask is the union over the places of a configuration. What a place reads within its rule does
// not depend on who called the rule, so it is found once a state by walking the trie and kept; only where a
// token leaves the rule is the caller asked, for the tokens below that node.
#include "text/token_mask.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

constexpr size_t kMaxLocalBytes = size_t{64} << 20;  // of what states read; dropped beyond
constexpr size_t kMaxMatcherBytes = size_t{16}
                                    << 20;  // of configurations; then all but the current are dropped

size_t Words(int vocab) { return (static_cast<size_t>(vocab) + 63) / 64; }

void Set(std::span<uint64_t> mask, int32_t token) {
  mask[static_cast<size_t>(token) / 64] |= uint64_t{1} << (token % 64);
}

}  // namespace

Result<std::shared_ptr<Constraint>> Constraint::Make(const Grammar& grammar,
                                                     std::shared_ptr<const TokenTrie> trie) {
  NIBBLE_ASSIGN(Automaton automaton, Automaton::Compile(grammar, trie->shape()));
  return std::shared_ptr<Constraint>(new Constraint(std::move(automaton), std::move(trie)));
}

Constraint::Constraint(Automaton automaton, std::shared_ptr<const TokenTrie> trie)
    : automaton_(std::move(automaton)),
      trie_(std::move(trie)),
      parts_(automaton_),
      locals_(static_cast<size_t>(automaton_.states())),
      mask_(Words(trie_->vocab())),
      configs_(static_cast<size_t>(trie_->shape().longest) + 1) {}

void Constraint::Walk(GrammarMatcher* matcher, GrammarMatcher::Config from, int32_t first, int32_t last,
                      std::span<uint64_t> mask, std::vector<int32_t>* escapes) {
  if (first >= last) return;
  const std::span<const TokenTrie::Node> nodes = trie_->nodes();
  configs_[nodes[static_cast<size_t>(first)].depth - 1u] = from;
  for (int32_t i = first; i < last;) {
    const TokenTrie::Node& node = nodes[static_cast<size_t>(i)];
    const GrammarMatcher::Config at = matcher->Step(configs_[node.depth - 1u], node.byte);
    if (at == GrammarMatcher::kDead) {
      i = node.after;
      continue;
    }
    configs_[node.depth] = at;
    for (const int32_t token : trie_->TokensAt(i)) Set(mask, token);
    if (escapes != nullptr && matcher->Escapes(at)) escapes->push_back(i);
    ++i;
  }
}

const Constraint::Local& Constraint::At(int32_t state) {
  state = automaton_.twin[static_cast<size_t>(state)];
  std::unique_ptr<Local>& slot = locals_[static_cast<size_t>(state)];
  if (slot) return *slot;
  if (local_bytes_ > kMaxLocalBytes) {
    for (auto& local : locals_) local.reset();
    local_bytes_ = 0;
  }
  auto local = std::make_unique<Local>();
  const GrammarMatcher::Config from = parts_.StartAt(state);
  std::fill(mask_.begin(), mask_.end(), 0);
  Walk(&parts_, from, 0, static_cast<int32_t>(trie_->nodes().size()), mask_, &local->escapes);
  size_t count = 0;
  for (const uint64_t word : mask_) count += static_cast<size_t>(std::popcount(word));
  if (count * sizeof(int32_t) >= mask_.size() * sizeof(uint64_t)) {
    local->many = mask_;
  } else {
    for (int32_t token = 0; token < trie_->vocab(); ++token) {
      if ((mask_[static_cast<size_t>(token) / 64] >> (token % 64) & 1) != 0) local->few.push_back(token);
    }
  }
  local_bytes_ += local->many.size() * 8 + (local->few.size() + local->escapes.size()) * 4 + sizeof(Local);
  if (parts_.bytes() > kMaxMatcherBytes) parts_.Shrink(from);
  slot = std::move(local);
  return *slot;
}

ConstraintState::ConstraintState(std::shared_ptr<Constraint> constraint)
    : constraint_(std::move(constraint)),
      matcher_(constraint_->automaton()),
      at_(matcher_.Start()),
      mask_(Words(constraint_->trie().vocab())) {}

std::span<const uint64_t> ConstraintState::Mask() {
  const TokenTrie& trie = constraint_->trie();
  std::fill(mask_.begin(), mask_.end(), 0);
  if (MayEnd()) {
    for (const int32_t token : trie.ends()) Set(mask_, token);
  }
  if (first_ && trie.first_differs()) {
    MaskFirst();
    return mask_;
  }
  // Places by value: walking moves the tables. A twin differs from what is joined at most in its callers.
  places_.clear();
  for (const Place& place : matcher_.Places(at_)) {
    if (place.state == Automaton::kAccept) continue;
    places_.push_back({constraint_->automaton().twin[static_cast<size_t>(place.state)], place.callers});
  }
  std::sort(places_.begin(), places_.end());
  places_.erase(std::unique(places_.begin(), places_.end()), places_.end());
  for (size_t i = 0; i < places_.size(); ++i) {
    const Constraint::Local& local = constraint_->At(places_[i].state);
    if (i == 0 || places_[i].state != places_[i - 1].state) {
      for (size_t w = 0; w < local.many.size(); ++w) mask_[w] |= local.many[w];
      for (const int32_t token : local.few) Set(mask_, token);
    }
    if (local.escapes.empty()) continue;
    const GrammarMatcher::Config outside = matcher_.Return(places_[i].callers);
    for (const int32_t node : local.escapes) {
      constraint_->Walk(&matcher_, outside, node + 1, trie.nodes()[static_cast<size_t>(node)].after, mask_,
                        nullptr);
    }
  }
  return mask_;
}

GrammarMatcher::Config ConstraintState::Read(std::string_view bytes) {
  GrammarMatcher::Config at = at_;
  for (const char byte : bytes) at = matcher_.Step(at, static_cast<uint8_t>(byte));
  return at;
}

// Once a text, so token by token.
void ConstraintState::MaskFirst() {
  const TokenTrie& trie = constraint_->trie();
  for (int32_t token = 0; token < trie.vocab(); ++token) {
    if (!trie.Bytes(token).empty() && Read(trie.FirstBytes(token)) != GrammarMatcher::kDead)
      Set(mask_, token);
  }
}

bool ConstraintState::Accept(int32_t token) {
  const TokenTrie& trie = constraint_->trie();
  if (token < 0 || token >= trie.vocab()) return false;
  if (std::find(trie.ends().begin(), trie.ends().end(), token) != trie.ends().end()) return MayEnd();
  if (trie.Bytes(token).empty()) return false;
  const GrammarMatcher::Config at = Read(first_ ? trie.FirstBytes(token) : trie.Bytes(token));
  if (at == GrammarMatcher::kDead || matcher_.exhausted() || constraint_->exhausted()) return false;
  at_ = at;
  first_ = false;
  if (matcher_.bytes() <= kMaxMatcherBytes) return true;
  at_ = matcher_.Shrink(at_);
  return matcher_.bytes() <= kMaxMatcherBytes;
}

bool ConstraintState::Finished() const {
  return MayEnd() && matcher_.Places(at_).size() == 1;  // kAccept alone
}

}  // namespace nibble
