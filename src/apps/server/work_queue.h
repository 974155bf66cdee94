// SPDX-License-Identifier: Apache-2.0
// Floor 9. Threads for work that would hold up I/O: parsing bodies, cutting prompts into tokens, compiling
// grammars, writing long answers.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble::server {

class WorkQueue {
 public:
  WorkQueue(int threads, size_t most);
  ~WorkQueue();  // without what still waits
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  bool TryPost(std::function<void()> work);  // false: `most` wait already
  void Post(std::function<void()> work);     // for what has been let in before

 private:
  void Run();

  const size_t most_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace nibble::server
