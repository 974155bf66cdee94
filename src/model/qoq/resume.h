// SPDX-License-Identifier: Apache-2.0
// Floor 7. What a long run keeps on the disk so that the next one can continue: the folder OUT.qoq-state with
// a file for each finished layer and the streams after the last of them. All of it belongs to one fingerprint
// of model, text and options; anything else there is thrown away.
#pragma once
#include <memory>
#include <string>

#include "io/weights.h"
#include "model/qoq/pipeline.h"

namespace nibble::qoq {

// OUT.qoq-state.
std::string StateFolder(std::string out);

class ResumeState {
 public:
  // Opens or creates OUT.qoq-state. kInvalidArgument when another live run holds it.
  static Result<ResumeState> Open(const std::string& out, const std::string& fingerprint);
  ResumeState(ResumeState&& other) noexcept;
  ResumeState& operator=(ResumeState&&) = delete;
  ~ResumeState();

  int layers_done() const { return layers_done_; }
  // The streams after layers_done() layers. REQUIRES layers_done() > 0.
  Result<Streams> ReadStreams() const;
  // Makes layer number layers_done() and the streams after it durable.
  Status Save(const QuantizedLayer& layer, const Streams& streams);
  // The tensors of a finished layer under their final names, and its report.
  Result<std::unique_ptr<io::Weights>> ReadLayer(int index) const;
  Result<LayerReport> ReadReport(int index) const;
  void Remove();  // the folder and all in it

 private:
  ResumeState(std::string dir, std::string fingerprint, int lock)
      : dir_(std::move(dir)), fingerprint_(std::move(fingerprint)), lock_(lock) {}
  std::string LayerPath(int index) const;
  bool FindDone();  // false when what is there is not of this fingerprint

  std::string dir_, fingerprint_;
  int lock_ = -1;
  int layers_done_ = 0;
};

}  // namespace nibble::qoq
