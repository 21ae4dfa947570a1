#include "scheduler.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <numeric>
#include <vector>

#include "device.hpp"
#include "sanitizers.hpp"

// All `__shared__` variables; the linker names the section's ends. Weak, as a program may have none.
extern "C" char __start_device_shared[] __attribute__((weak));
extern "C" char __stop_device_shared[] __attribute__((weak));

// Saves the registers that a function must keep and the stack pointer, and takes the other's. A hundred times faster than
// swapcontext, which asks the kernel for the signal mask.
extern "C" void device_switch(void** save, void* load);
asm(R"(
.text
.globl device_switch
.type device_switch, @function
device_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size device_switch, .-device_switch
)");

namespace device {

const uint3* thread_index;
uint3 block_index;
dim3 block_size, grid_size;
unsigned lane;
void* dynamic_shared;

namespace {

constexpr unsigned kMaxThreads = 1024, kMaxShared = 48 << 10;
constexpr size_t kStack = 256 << 10, kGuard = 4096;

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  sanitizer::Fiber fiber;
  uint3 index{};
  unsigned lane = 0, warp = 0;
  State state = State::kDone;
  // where it waits, and what it brought there
  const char* what = "";
  Where at{"", 0};
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;
};

// Threads that meet again and again: a block's, or those of one mask. ThreadSanitizer gets two tags in turn: a thread that runs
// on to the next meeting must not release what one that still leaves this meeting will acquire. It would hide races.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  bool phase = false;
  char tags[2] = {};
};

struct Warp {
  unsigned lanes = 0, exited = 0;  // bits
  std::deque<Meeting> meetings;    // one for each mask; a deque, as those who wait hold addresses
  Thread* threads = nullptr;

  Meeting& meeting(unsigned mask) {
    for (Meeting& m : meetings)
      if (m.mask == mask) return m;
    meetings.emplace_back().mask = mask;
    return meetings.back();
  }
};

std::vector<Thread> threads;  // of the block that runs; those after `count` are from a larger launch before
std::vector<Warp> warps;
Meeting barrier;
unsigned count, exited;
Thread* running;
const Kernel* kernel;
const void* kernel_params;
void* scheduler_stack_pointer;
sanitizer::Fiber scheduler;
char block_begins, block_ended;  // ThreadSanitizer's tags; two, as a thread that ended is not ordered before one that begins

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string text(const Where& at) { return std::string(at.file) + ":" + std::to_string(at.line); }

[[noreturn]] void stop(const std::string& message) {
  fprintf(stderr, "device: %s\n", message.c_str());
  _exit(3);  // not abort(): no core file
}

[[noreturn]] void fail(const Thread& thread, const std::string& message) {
  stop(text(thread.at) + ": " + thread.what + ": " + message + " [" + kernel->name + ", block " + text(block_index) +
       ", thread " + text(thread.index) + "]");
}

void suspend(bool last = false) {
  Thread& self = *running;
  sanitizer::leave(self.fiber, scheduler, last);
  device_switch(&self.stack_pointer, scheduler_stack_pointer);
  sanitizer::entered(self.fiber, scheduler);
}

void resume(Thread& thread) {
  running = &thread;
  thread_index = &thread.index;
  lane = thread.lane;
  sanitizer::leave(scheduler, thread.fiber, false);
  device_switch(&scheduler_stack_pointer, thread.stack_pointer);
  sanitizer::entered(scheduler, thread.fiber);
}

bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

void check_same_place(const Thread& a, const Thread& b) {
  if (a.at.line != b.at.line || !same(a.what, b.what) || !same(a.at.file, b.at.file))
    fail(a, "thread " + text(b.index) + " is at " + b.what + ", " + text(b.at));
}

// A thread that exited is missed where others wait for it. The hardware lets barriers pass then; here it counts as a fault,
// since CUDA's guide asks that all threads of the block, and all lanes of the mask, come.
void exit_thread(Thread& self) {
  self.state = State::kDone;
  ++exited;
  Warp& warp = warps[self.warp];
  warp.exited |= 1u << self.lane;
  for (unsigned i = 0; i < count && barrier.arrived; ++i)
    if (threads[i].state == State::kAtBarrier) fail(threads[i], "thread " + text(self.index) + " has exited");
  for (unsigned i = 0; i < 32; ++i)
    if (warp.lanes >> i & 1 && warp.threads[i].state == State::kAtWarp && warp.threads[i].mask >> self.lane & 1)
      fail(warp.threads[i], "the mask names lane " + std::to_string(self.lane) + ", which has exited");
}

void thread_main() {
  sanitizer::entered(running->fiber, scheduler);
  sanitizer::acquire(&block_begins);
  kernel->call(kernel_params);
  sanitizer::release(&block_ended);
  exit_thread(*running);
  suspend(true);
}

enum class Collective { kSync, kVote, kShuffle };

// Waits for all lanes of the mask; the last to come hands out what each gets.
uint64_t meet_warp(Collective kind, const char* what, Where at, unsigned mask, uint64_t value, unsigned source) {
  Thread& self = *running;
  Warp& warp = warps[self.warp];
  self.what = what;
  self.at = at;
  if (!(mask >> self.lane & 1)) fail(self, "the mask leaves out the lane that calls");
  mask &= warp.lanes;  // the last warp of a block may be smaller
  self.mask = mask;
  self.value = value;
  self.source = source;
  if (mask & warp.exited)
    fail(self, "the mask names lane " + std::to_string(__builtin_ctz(mask & warp.exited)) + ", which has exited");
  if (source >= 32 || !(mask >> source & 1)) fail(self, "reads lane " + std::to_string(source) + ", which is not in the mask");

  Meeting& meeting = warp.meeting(mask);
  char* tag = &meeting.tags[meeting.phase];
  // Only __syncwarp orders memory: what votes and shuffles do not promise, ThreadSanitizer must not take for granted.
  if (kind == Collective::kSync) sanitizer::release(tag);
  meeting.arrived |= 1u << self.lane;
  self.state = State::kAtWarp;
  if (meeting.arrived == mask) {
    uint64_t ballot = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const unsigned i = __builtin_ctz(rest);
      check_same_place(self, warp.threads[i]);
      ballot |= uint64_t(warp.threads[i].value != 0) << i;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      Thread& member = warp.threads[__builtin_ctz(rest)];
      member.result = kind == Collective::kShuffle ? warp.threads[member.source].value : ballot;
      member.state = State::kReady;
    }
    meeting.arrived = 0;
    meeting.phase = !meeting.phase;
  }
  suspend();
  if (kind == Collective::kSync) sanitizer::acquire(tag);
  return self.result;
}

// Grows the pool. Stacks stay for the next launch; a guard page below each turns an overflow into a crash.
void make_threads(unsigned wanted) {
  while (threads.size() < wanted) {
    Thread& thread = threads.emplace_back();
    void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) stop("no memory for the threads' stacks");
    thread.stack = static_cast<char*>(memory) + kGuard;
    thread.fiber.bottom = thread.stack;
    thread.fiber.size = kStack;
    sanitizer::create(thread.fiber);
  }
}

// Puts a thread at the start of the kernel: the stack as device_switch would have left it.
void rewind(Thread& thread, unsigned i) {
  thread.index = make_uint3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
  thread.lane = i % 32;
  thread.warp = i / 32;
  thread.state = State::kReady;
  thread.what = "";
  // Not all at the same distance from a page: they would share a few lines of the cache.
  char* top = thread.stack + kStack - (i % 32) * 128 - 64;
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // in the caller's place: nothing to return to, and there sanitizers end the trace
  *--slot = reinterpret_cast<void*>(thread_main);
  for (int saved = 0; saved < 6; ++saved) *--slot = nullptr;
  thread.stack_pointer = slot;
}

// What was not written before it is read comes out as NaN, or as -1. By hand: the sanitizers watch memset.
void poison(void* begin, size_t bytes) {
  asm volatile("rep stosb" : "+D"(begin), "+c"(bytes) : "a"(0xff) : "memory");
}

void run_block(std::vector<unsigned>& turns, Order order, std::mt19937& random) {
  exited = 0;
  barrier.arrived = 0;
  for (unsigned w = 0; w < warps.size(); ++w) {
    const unsigned lanes = std::min(32u, count - 32 * w);
    warps[w].lanes = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps[w].exited = 0;
    warps[w].meetings.clear();
    warps[w].threads = &threads[32 * w];
  }
  for (unsigned i = 0; i < count; ++i) rewind(threads[i], i);
  while (exited < count) {
    if (order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
    bool ran = false;
    for (const unsigned i : turns)
      if (threads[i].state == State::kReady) {
        resume(threads[i]);
        ran = true;
      }
    for (unsigned i = 0; i < count && !ran; ++i)
      if (threads[i].state != State::kDone) fail(threads[i], "waits for ever: others wait elsewhere");
  }
}

std::vector<Kernel>& kernels() {  // in a function: registrations run before main, in no order
  static std::vector<Kernel> list;
  return list;
}

std::vector<unsigned> turns_of(unsigned n, Order order) {
  std::vector<unsigned> turns(n);
  std::iota(turns.begin(), turns.end(), 0u);
  if (order == Order::kReversed) std::reverse(turns.begin(), turns.end());
  return turns;
}

}  // namespace

void sync_block(Where at) {
  Thread& self = *running;
  self.what = "__syncthreads";
  self.at = at;
  if (exited) fail(self, "not all threads come: " + std::to_string(exited) + " of the block have exited");
  char* tag = &barrier.tags[barrier.phase];
  sanitizer::release(tag);
  self.state = State::kAtBarrier;
  if (++barrier.arrived == count) {
    for (unsigned i = 0; i < count; ++i) {
      check_same_place(self, threads[i]);
      threads[i].state = State::kReady;
    }
    barrier.arrived = 0;
    barrier.phase = !barrier.phase;
  }
  suspend();
  sanitizer::acquire(tag);
}

void sync_warp(unsigned mask, Where at) { meet_warp(Collective::kSync, "__syncwarp", at, mask, 0, lane); }

unsigned vote(const char* what, Where at, unsigned mask, bool predicate) {
  return unsigned(meet_warp(Collective::kVote, what, at, mask, predicate, lane));
}

uint64_t shuffle(const char* what, Where at, unsigned mask, uint64_t value, unsigned source) {
  return meet_warp(Collective::kShuffle, what, at, mask, value, source);
}

Registration::Registration(Kernel kernel) { kernels().push_back(kernel); }

const Kernel* find_kernel(const std::string& name) {
  for (const Kernel& k : kernels())
    if (k.name == name) return &k;
  return nullptr;
}

// Limits of compute capability 7.5.
std::string refusal(const Kernel& kernel, const Shape& shape) {
  const dim3 &grid = shape.grid, &block = shape.block;
  const uint64_t size = uint64_t(block.x) * block.y * block.z;
  const std::string name = std::string(kernel.name) + ": ";
  if (!size || size > kMaxThreads || block.z > 64)
    return name + "a block of " + text(block) + " threads; 1024 and z = 64 are the most";
  if (size > kernel.max_threads)
    return name + "a block of " + std::to_string(size) + " threads; its launch bounds are " + std::to_string(kernel.max_threads);
  if (!grid.x || !grid.y || !grid.z || grid.x >= 1u << 31 || grid.y > 65535 || grid.z > 65535)
    return name + "a grid of " + text(grid) + " blocks; y and z go from 1 to 65535";
  if (uint64_t(shape.dynamic_shared) + shape.static_shared > kMaxShared)
    return name + std::to_string(shape.static_shared) + " bytes of static and " + std::to_string(shape.dynamic_shared) +
           " of dynamic shared memory; 49152 are the most";
  return "";
}

void launch(const Kernel& which, const Shape& shape, const void* params, Order order, std::mt19937& random) {
  kernel = &which;
  kernel_params = params;
  if (const std::string refused = refusal(which, shape); !refused.empty()) stop(refused);
  grid_size = shape.grid;
  block_size = shape.block;
  count = block_size.x * block_size.y * block_size.z;
  make_threads(count);
  warps.resize((count + 31) / 32);
  sanitizer::adopt_current(scheduler);
  std::vector<unsigned> turns = turns_of(count, order), blocks = turns_of(grid_size.x * grid_size.y * grid_size.z, order);
  if (order == Order::kShuffled) std::shuffle(blocks.begin(), blocks.end(), random);
  dynamic_shared = malloc(shape.dynamic_shared);  // of exactly that size, so that AddressSanitizer sees its end
  for (const unsigned b : blocks) {
    block_index = make_uint3(b % grid_size.x, b / grid_size.x % grid_size.y, b / grid_size.x / grid_size.y);
    poison(__start_device_shared, __stop_device_shared - __start_device_shared);
    poison(dynamic_shared, shape.dynamic_shared);
    sanitizer::release(&block_begins);
    run_block(turns, order, random);
    sanitizer::acquire(&block_ended);
  }
  free(dynamic_shared);
}

}  // namespace device
