// A CUDA driver on host memory: what its parts share. Streams are lazy: work is queued, and runs when something has to wait for
// it, no earlier; so a program that forgets to wait reads what was there before. The README says what it checks.
#pragma once

#include <cuda.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace device {
struct Kernel;
}

namespace driver {

using Lock = std::unique_lock<std::mutex>;
struct Stream;

// ---- Memory ---------------------------------------------------------------------------------------------------------------

// Where a range of memory must lie, in whole, for as long as something uses it.
enum class Place {
  kDevice,  // in one allocation of device memory
  kHost,    // in one of page-locked memory, or in the program's own, of which nothing is known
  kPointer  // a kernel's parameter: in, or at the end of, an allocation of either kind
};

struct Range {
  uintptr_t begin;
  size_t bytes;
  Place place;
};

struct Block {
  size_t bytes;
  bool host, live;
};

// Hands out addresses of one reserved range, and none of them twice: a dead address stays one for ever.
class Arena {
 public:
  void* allocate(size_t bytes, bool host);  // null: the reserved range is used up
  bool release(uintptr_t begin, bool host);
  bool holds(uintptr_t address) const { return address - base_ < size_; }
  const Block* find(uintptr_t address, uintptr_t* begin) const;  // the block that it lies in or ends, dead or alive
  std::string wrong(const Range& range) const;                   // why the range must not be used; empty where it may
  std::string overrun() const;                                   // which allocation was written before or behind
  size_t bytes(bool host) const { return bytes_[host]; }
  size_t count(bool host) const { return count_[host]; }
  void abandon();                   // all that lives becomes dead memory, though still counted: nobody freed it
  void forget() { bytes_[0] = bytes_[1] = count_[0] = count_[1] = 0; }

 private:
  using Blocks = std::map<uintptr_t, Block>;
  void kill(Blocks::iterator block);

  uintptr_t base_ = 0, next_ = 0;
  size_t size_ = 0, bytes_[2] = {}, count_[2] = {}, kept_ = 0;
  Blocks blocks_;
  std::deque<Blocks::iterator> dead_;  // those whose memory is still there, filled with 0xFF
};

// ---- Streams, events, graphs ----------------------------------------------------------------------------------------------

struct Function {
  std::string name;
  CUmodule module;
  const device::Kernel* kernel;  // null: the sources have none of that name
  bool loaded = false, unloaded = false;
};

struct Marker {  // a point in a stream's work
  std::shared_ptr<Stream> stream;  // until it is reached
  bool reached = false;
  std::chrono::steady_clock::time_point time;
};

struct Operation {
  std::string what;            // for messages
  std::vector<Range> touches;  // checked again when it runs
  std::shared_ptr<Function> function;
  std::function<void()> work;
  CUhostFn host = nullptr;
  void* host_data = nullptr;
  std::shared_ptr<Marker> reach, wait;
};

struct Node {
  Operation operation;
  std::vector<size_t> after;  // earlier nodes
};

struct Graph {
  std::vector<Node> nodes;
};

struct Executable {
  std::shared_ptr<Marker> last;  // where its last launch ends
  std::vector<Operation> operations;
};

struct Capture {
  CUstreamCaptureMode mode;
  std::thread::id thread;
  const Stream* origin;
  bool active = true;  // not ended
  bool invalid = false;
  Graph graph;
};

struct Stream : std::enable_shared_from_this<Stream> {
  unsigned flags = 0;
  int priority = 0;
  std::deque<Operation> queue;
  bool busy = false;       // a host function runs, without the lock
  bool destroyed = false;  // though there may be work left
  std::shared_ptr<Capture> capture;
  std::vector<size_t> frontier;  // of the capture: the nodes that come before the next one

  bool idle() const { return queue.empty() && !busy; }
  bool blocking() const { return !(flags & CU_STREAM_NON_BLOCKING); }
};

struct Event {
  unsigned flags = 0;
  std::shared_ptr<Marker> marker;    // null: never recorded
  std::shared_ptr<Capture> capture;  // recorded in one
  std::vector<size_t> frontier;
};

struct Module {
  std::vector<std::shared_ptr<Function>> functions;
  std::vector<CUfunction> handles;
};

// Objects by handle. No handle comes twice, so that one that was destroyed is never taken for another.
template <class T, class Handle>
class Table {
 public:
  Handle add(std::shared_ptr<T> object) {
    static uintptr_t next = 0x5eed0000;
    const Handle handle = reinterpret_cast<Handle>(next += 0x1000);
    objects_[handle] = std::move(object);
    return handle;
  }
  std::shared_ptr<T> find(Handle handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }
  bool remove(Handle handle) { return objects_.erase(handle) != 0; }
  size_t size() const { return objects_.size(); }
  void clear() { objects_.clear(); }

 private:
  std::map<Handle, std::shared_ptr<T>> objects_;
};

// ---- The driver -----------------------------------------------------------------------------------------------------------

constexpr size_t kMemory = size_t(4) << 30;

struct Failure {
  CUresult status;
  int after;  // calls that still succeed
};

struct State {
  std::mutex mutex;
  std::condition_variable finished;  // a host function
  bool initialised = false;
  unsigned retained = 0;             // the primary context, the only one
  unsigned long long generation = 0;  // how often it was made
  CUresult sticky = CUDA_SUCCESS;    // what queued work failed with; every later call does too
  size_t memory = kMemory;
  Arena arena;
  Table<Stream, CUstream> streams;
  Table<Event, CUevent> events;
  Table<Graph, CUgraph> graphs;
  Table<Executable, CUgraphExec> executables;
  Table<Module, CUmodule> modules;
  Table<Function, CUfunction> functions;
  std::shared_ptr<Stream> legacy = std::make_shared<Stream>();
  std::vector<std::shared_ptr<Stream>> all;  // streams, and those destroyed that have work left
  std::vector<std::shared_ptr<Capture>> captures;
  std::map<std::string, uint64_t> calls;
  std::map<std::string, Failure> failures;
};

State& state();

enum Needs : unsigned {
  kNothing = 0,
  kInit = 1,           // cuInit
  kContext = 2,        // a current context, without a sticky error
  kUncaptured = 4,     // no capture that forbids unsafe calls to this thread
  kNoneCaptured = 12,  // no capture of any thread
};

// What every function does first: counts the call, and refuses it where it must be.
CUresult begin(const char* function, unsigned needs);

template <class Body>
CUresult call(const char* function, unsigned needs, Body body) {
  Lock lock(state().mutex);
  const CUresult refused = begin(function, needs);
  return refused != CUDA_SUCCESS ? refused : body(lock);
}

CUresult report(CUresult status, const std::string& message);  // on stderr; returns the status
void fail(CUresult status, const std::string& message);        // for ever
CUcontext primary();
int capability();                             // of the device, as 75: AMSA_TEST_COMPUTE_CAPABILITY, or 7.5
std::string library();                        // the path of this library
extern thread_local bool in_host_function;    // of a stream

std::shared_ptr<Stream> find_stream(CUstream handle);  // null: there is none
CUresult submit(const std::shared_ptr<Stream>& stream, Operation operation);
std::string wrong(const Operation& operation);                        // why it must not run; empty where it may
void step(const std::shared_ptr<Stream>& stream, Lock& lock);         // runs one operation, or one that it waits for
CUresult finish(const std::shared_ptr<Stream>& stream, Lock& lock);   // runs all that is queued
CUresult finish_all(Lock& lock);                                      // on all streams
void drop_work();
std::shared_ptr<Marker> mark(const std::shared_ptr<Stream>& stream);  // behind all that is queued now
void wait_for(Stream& stream, std::shared_ptr<Marker> marker);
CUresult legacy_refused(const std::string& what);  // by a capture, if it is
std::string order_name();                          // AMSA_TEST_ORDER: "forward", "reversed" or "shuffled"
std::vector<size_t> turns(size_t count);           // things that may run in any order, in that one

bool forbids(const Capture& capture);  // unsafe calls, to this thread
void invalidate(Capture& capture);
void end_capture(const std::shared_ptr<Capture>& capture);
CUresult join(Stream& stream, const Event& event);  // the capture that the event was recorded in

}  // namespace driver
