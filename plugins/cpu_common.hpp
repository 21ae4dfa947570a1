// What the CPU kernels share: one build for every x86, errors, memory, threads, and features in whatever layout.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

// The loader picks the widest instruction set that the processor has. Rounding does not depend on it: the build forbids
// contraction to fused multiply-add, and reductions keep a fixed number of lanes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AMSA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define AMSA_CLONES
#endif

namespace amsa {

constexpr int kLanes = 16;  // partial sums of a dot product: one 512-bit register, two of 256 bits

// What a caller got wrong, in one line. Caught by `guarded`: nothing is thrown across the C interface.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs work; null, or a message that lives until this thread's next call.
template <class Work>
const char* guarded(const Work& work) noexcept {
  static thread_local std::string message;
  try {
    work();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "not enough memory";
  } catch (const std::exception& e) {
    try {
      message = e.what();
      return message.c_str();
    } catch (...) {
      return "not enough memory";
    }
  }
}

// Uninitialised memory that starts at a cache line, so that a whole vector never straddles two.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : data_(static_cast<T*>(::operator new(bytes(count), std::align_val_t(64)))) {}
  T* get() const { return data_.get(); }

 private:
  static size_t bytes(size_t count) {
    if (count > size_t(PTRDIFF_MAX) / sizeof(T)) throw std::bad_alloc();
    return count * sizeof(T);
  }
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
};

// The product of sizes that are not negative; too large for memory is an error, not an overflow.
template <class... Sizes>
size_t product(Sizes... sizes) {
  size_t total = 1;
  for (const size_t size : {size_t(sizes)...})
    if (__builtin_mul_overflow(total, size, &total) || total > size_t(PTRDIFF_MAX)) throw std::bad_alloc();
  return total;
}

// Threads that live as long as one call of an op and share out its loops. Work must not throw.
class Team {
 public:
  explicit Team(int threads) {
    for (int t = 1; t < threads; ++t) try {
        workers_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {
        break;  // the system has no more threads to give
      }
  }

  ~Team() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Runs work(i) for i in [0, count), in any order.
  template <class Work>
  void run(int count, const Work& work) {
    if (workers_.empty() || count < 2) {
      for (int i = 0; i < count; ++i) work(i);
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = std::cref(work);
      count_ = count;
      next_ = 0;
      busy_ = workers_.size();
      ++turn_;
    }
    wake_.notify_all();
    take();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void take() {
    for (int i; (i = next_.fetch_add(1)) < count_;) work_(i);
  }

  void serve() {
    for (unsigned seen = 0;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || turn_ != seen; });
        if (stop_) return;
        seen = turn_;
      }
      take();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::function<void(int)> work_;
  std::atomic<int> next_{0};
  int count_ = 0;
  size_t busy_ = 0;
  unsigned turn_ = 0;
  bool stop_ = false;
  std::vector<std::thread> workers_;  // the last member: the others must be there when a thread starts
};

// Threads worth starting for so many multiply-adds: below a million each, waking them takes longer than they save.
inline int worthwhile(int threads, double multiply_adds) {
  return std::max(1, int(std::min(double(threads), multiply_adds / 1e6)));
}

// As many pieces of scratch memory as a team has threads: each takes one for as long as it works on something.
class ScratchPool {
 public:
  ScratchPool(int pieces, size_t floats)
      : pieces_(pieces), floats_((floats + 15) / 16 * 16), memory_(product(pieces, floats_)), taken_(pieces) {}

  class Share {
   public:
    explicit Share(ScratchPool& pool) : pool_(pool) {
      while (pool_.taken_[own_].exchange(true)) own_ = (own_ + 1) % pool_.pieces_;
    }
    ~Share() { pool_.taken_[own_] = false; }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    float* get() const { return pool_.memory_.get() + own_ * pool_.floats_; }

   private:
    ScratchPool& pool_;
    int own_ = 0;
  };

 private:
  int pieces_;
  size_t floats_;
  Buffer<float> memory_;
  std::vector<std::atomic<bool>> taken_;
};

// Threads of calls that name no number of their own.
int default_threads();

// Features [channels, rows, cols] of one batch element as the caller has them.
struct Picture {
  const void* data;
  bool half;           // float16, else float32
  bool channels_last;  // [rows, cols, channels] in memory
  int channels, rows, cols;
};

inline const void* element(const void* data, bool half, size_t index) {
  return static_cast<const char*>(data) + index * (half ? 2 : 4);
}

// `count` pixels of a row from column `begin` on -> float32 [count, pitch], channels beyond the picture's zero.
void load_pixels(const Picture& picture, int row, int begin, int count, int pitch, float* out);

// The reverse, into features: `pixels` is [count, channels].
void store_pixels(const float* pixels, const Picture& picture, int row, int begin, int count);

}  // namespace amsa
