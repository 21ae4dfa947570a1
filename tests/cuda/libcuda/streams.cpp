// Streams and events: when queued work runs, and in which order.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "state.hpp"

namespace driver {

thread_local bool in_host_function = false;

std::shared_ptr<Marker> mark(const std::shared_ptr<Stream>& stream) {
  if (!stream->queue.empty() && stream->queue.back().reach) return stream->queue.back().reach;
  Operation operation;
  operation.what = "a marker";
  operation.reach = std::make_shared<Marker>();
  operation.reach->stream = stream;
  stream->queue.push_back(operation);
  return operation.reach;
}

void wait_for(Stream& stream, std::shared_ptr<Marker> marker) {
  Operation operation;
  operation.what = "a wait for another stream";
  operation.wait = std::move(marker);
  stream.queue.push_back(std::move(operation));
}

namespace {

// The legacy stream waits for the blocking ones, and they for it.
void order_with_legacy(const std::shared_ptr<Stream>& stream) {
  State& s = state();
  if (stream == s.legacy) {
    for (const auto& other : s.all)
      if (other->blocking() && !other->idle()) wait_for(*stream, mark(other));
  } else if (stream->blocking() && !s.legacy->idle()) {
    wait_for(*stream, mark(s.legacy));
  }
}

// In a thread of its own, as the real driver does: code that holds a lock which the function takes hangs on both.
void run_host_function(Stream& stream, const Operation& operation, Lock& lock) {
  stream.busy = true;
  lock.unlock();
  std::thread([&operation] {
    in_host_function = true;
    operation.host(operation.host_data);
  }).join();
  lock.lock();
  stream.busy = false;
  state().finished.notify_all();
}

void reached(Marker& marker) {
  marker.reached = true;
  marker.time = std::chrono::steady_clock::now();
  marker.stream.reset();
}

void execute(Stream& stream, const Operation& operation, Lock& lock) {
  if (const std::string why = wrong(operation); !why.empty())
    return fail(CUDA_ERROR_ILLEGAL_ADDRESS, operation.what + ": " + why);
  if (operation.work) operation.work();
  if (operation.host) run_host_function(stream, operation, lock);
  if (operation.reach) reached(*operation.reach);
}

CUresult reach(const std::shared_ptr<Marker>& marker, Lock& lock) {
  while (!marker->reached && !state().sticky) step(std::shared_ptr<Stream>(marker->stream), lock);
  return state().sticky;
}

}  // namespace

std::string order_name() {
  const char* const set = getenv("AMSA_TEST_ORDER");
  return set ? set : "forward";
}

std::vector<size_t> turns(size_t count) {
  const std::string order = order_name();
  static std::mt19937 random(7);
  std::vector<size_t> turns(count);
  std::iota(turns.begin(), turns.end(), size_t(0));
  if (order == "reversed") std::reverse(turns.begin(), turns.end());
  if (order == "shuffled") std::shuffle(turns.begin(), turns.end(), random);
  return turns;
}

std::string wrong(const Operation& operation) {
  for (const Range& range : operation.touches)
    if (const std::string why = state().arena.wrong(range); !why.empty()) return why;
  return operation.function && operation.function->unloaded ? "its module was unloaded" : "";
}

std::shared_ptr<Stream> find_stream(CUstream handle) {
  return !handle || handle == CU_STREAM_LEGACY ? state().legacy : state().streams.find(handle);
}

CUresult submit(const std::shared_ptr<Stream>& stream, Operation operation) {
  if (const auto& capture = stream->capture) {
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    auto& nodes = capture->graph.nodes;
    nodes.push_back({std::move(operation), stream->frontier});
    stream->frontier = {nodes.size() - 1};
    return CUDA_SUCCESS;
  }
  if (stream == state().legacy)
    if (const CUresult refused = legacy_refused(operation.what)) return refused;
  order_with_legacy(stream);
  stream->queue.push_back(std::move(operation));
  return CUDA_SUCCESS;
}

CUresult legacy_refused(const std::string& what) {
  bool captured = false;
  for (const auto& capture : state().captures)
    if (forbids(*capture) || capture->origin->blocking()) invalidate(*capture), captured = true;
  if (!captured) return CUDA_SUCCESS;
  return report(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, what + " on the legacy stream while a stream is captured");
}

void step(const std::shared_ptr<Stream>& stream, Lock& lock) {
  if (stream->busy) {
    state().finished.wait(lock, [&] { return !stream->busy; });
    return;
  }
  if (stream->queue.empty()) return;  // another thread ran it
  if (const auto marker = stream->queue.front().wait; marker && !marker->reached)
    return step(std::shared_ptr<Stream>(marker->stream), lock);
  const Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  execute(*stream, operation, lock);
}

CUresult finish(const std::shared_ptr<Stream>& stream, Lock& lock) {
  if (stream == state().legacy) order_with_legacy(stream);
  while (!stream->idle() && !state().sticky) step(stream, lock);
  return state().sticky;
}

CUresult finish_all(Lock& lock) {
  State& s = state();
  const auto streams = s.all;
  finish(s.legacy, lock);
  for (const size_t i : turns(streams.size())) finish(streams[i], lock);
  const auto spent = [&](const std::shared_ptr<Stream>& stream) { return stream->idle() && stream->destroyed; };
  s.all.erase(std::remove_if(s.all.begin(), s.all.end(), spent), s.all.end());
  return s.sticky;
}

void drop_work() {
  State& s = state();
  while (!s.captures.empty()) end_capture(std::shared_ptr<Capture>(s.captures.front()));
  auto streams = s.all;
  streams.push_back(s.legacy);
  for (const auto& stream : streams) {
    for (const Operation& operation : stream->queue)
      if (operation.reach) reached(*operation.reach);  // or events would be waited for for ever
    stream->queue.clear();
  }
  s.all.erase(std::remove_if(s.all.begin(), s.all.end(), [](const auto& stream) { return stream->destroyed; }), s.all.end());
}

}  // namespace driver

using namespace driver;

// ---- Streams --------------------------------------------------------------------------------------------------------------

namespace {

CUresult create_stream(const char* function, CUstream* out, unsigned flags, int priority) {
  return call(function, kInit | kContext, [&](Lock&) {
    if (!out || flags & ~unsigned(CU_STREAM_NON_BLOCKING)) return CUDA_ERROR_INVALID_VALUE;
    auto stream = std::make_shared<Stream>();
    stream->flags = flags;
    stream->priority = priority;
    state().all.push_back(stream);
    *out = state().streams.add(std::move(stream));
    return CUDA_SUCCESS;
  });
}

// For functions that a stream may not be captured for.
template <class Body>
CUresult of_stream(const char* function, CUstream handle, Body body) {
  return call(function, kInit | kContext, [&](Lock& lock) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
      invalidate(*stream->capture);
      return report(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, std::string(function) + " of a stream that is captured");
    }
    if (stream == state().legacy)
      if (const CUresult refused = legacy_refused(function)) return refused;
    return body(stream, lock);
  });
}

}  // namespace

API CUresult cuStreamCreate(CUstream* out, unsigned flags) { return create_stream(__func__, out, flags, 0); }

API CUresult cuStreamCreateWithPriority(CUstream* out, unsigned flags, int priority) {
  return create_stream(__func__, out, flags, priority);
}

// What is queued runs all the same, when something waits for it.
API CUresult cuStreamDestroy_v2(CUstream handle) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = state().streams.find(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (const auto capture = stream->capture) {
      invalidate(*capture);
      if (capture->origin == stream.get()) end_capture(capture);
    }
    stream->destroyed = true;
    state().streams.remove(handle);
    return CUDA_SUCCESS;
  });
}

API CUresult cuStreamSynchronize(CUstream handle) {
  return of_stream(__func__, handle, [](const std::shared_ptr<Stream>& stream, Lock& lock) {
    return finish(stream, lock);
  });
}

// Not ready as long as there was something to do; so that a program that asks again and again gets on, it does some of it.
API CUresult cuStreamQuery(CUstream handle) {
  return of_stream(__func__, handle, [](const std::shared_ptr<Stream>& stream, Lock& lock) {
    if (stream->idle()) return CUDA_SUCCESS;
    step(stream, lock);
    return state().sticky ? state().sticky : CUDA_ERROR_NOT_READY;
  });
}

API CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
  });
}

API CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
  });
}

API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    const auto event = state().events.find(event_handle);
    if (!stream || !event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) return join(*stream, *event);
    if (stream->capture && event->marker) {
      invalidate(*stream->capture);
      return report(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a captured stream waits for an event recorded outside the capture");
    }
    if (!event->marker || event->marker->reached) return CUDA_SUCCESS;
    Operation operation;
    operation.what = "cuStreamWaitEvent";
    operation.wait = event->marker;
    return submit(stream, std::move(operation));
  });
}

API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    Operation operation;
    operation.what = "cuLaunchHostFunc";
    operation.host = function;
    operation.host_data = data;
    return submit(stream, std::move(operation));
  });
}

// ---- Events ---------------------------------------------------------------------------------------------------------------

namespace {

template <class Body>
CUresult of_event(const char* function, CUevent handle, Body body) {
  return call(function, kInit | kContext, [&](Lock& lock) {
    const auto event = state().events.find(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) {
      if (event->capture->active) invalidate(*event->capture);
      return report(CUDA_ERROR_CAPTURED_EVENT, std::string(function) + " of an event last recorded in a capture");
    }
    return body(*event, lock);
  });
}

}  // namespace

API CUresult cuEventCreate(CUevent* out, unsigned flags) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    auto event = std::make_shared<Event>();
    event->flags = flags;
    *out = state().events.add(std::move(event));
    return CUDA_SUCCESS;
  });
}

API CUresult cuEventDestroy_v2(CUevent handle) {
  return call(__func__, kInit | kContext,
              [&](Lock&) { return state().events.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}

API CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(stream_handle);
    const auto event = state().events.find(handle);
    if (!stream || !event) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
      if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      event->capture = stream->capture;
      event->frontier = stream->frontier;
      return CUDA_SUCCESS;
    }
    Operation operation;
    operation.what = "cuEventRecord";
    operation.reach = std::make_shared<Marker>();
    operation.reach->stream = stream;
    event->capture.reset();
    event->marker = operation.reach;
    return submit(stream, std::move(operation));
  });
}

API CUresult cuEventSynchronize(CUevent handle) {
  return of_event(__func__, handle, [](const Event& event, Lock& lock) {
    const auto marker = event.marker;
    return marker ? reach(marker, lock) : CUDA_SUCCESS;
  });
}

API CUresult cuEventQuery(CUevent handle) {
  return of_event(__func__, handle, [](const Event& event, Lock& lock) {
    const auto marker = event.marker;
    if (!marker || marker->reached) return CUDA_SUCCESS;
    step(std::shared_ptr<Stream>(marker->stream), lock);
    return state().sticky ? state().sticky : CUDA_ERROR_NOT_READY;
  });
}

API CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return of_event("cuEventElapsedTime", start, [&](const Event& from, Lock&) {
    const auto to = state().events.find(end);
    if (!to || (from.flags | to->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (to->capture) return CUDA_ERROR_CAPTURED_EVENT;
    if (!from.marker || !to->marker) return CUDA_ERROR_INVALID_HANDLE;  // not recorded
    if (!from.marker->reached || !to->marker->reached) return CUDA_ERROR_NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->marker->time - from.marker->time).count();
    return CUDA_SUCCESS;
  });
}

#undef cuEventElapsedTime
API CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}
