// Stream capture and graphs.
#include <algorithm>
#include <set>

#include "state.hpp"

namespace driver {

bool forbids(const Capture& capture) {
  if (capture.mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
  return capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL || capture.thread == std::this_thread::get_id();
}

void invalidate(Capture& capture) { capture.invalid = true; }

void end_capture(const std::shared_ptr<Capture>& capture) {
  State& s = state();
  capture->active = false;
  for (const auto& stream : s.all)
    if (stream->capture == capture) {
      stream->capture.reset();
      stream->frontier.clear();
    }
  s.captures.erase(std::find(s.captures.begin(), s.captures.end(), capture));
}

CUresult join(Stream& stream, const Event& event) {
  if (!event.capture->active) return report(CUDA_ERROR_INVALID_VALUE, "a wait for an event of a capture that has ended");
  if (&stream == state().legacy.get()) {
    invalidate(*event.capture);
    return report(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream waits for an event of a capture");
  }
  if (stream.capture && stream.capture != event.capture) {
    invalidate(*event.capture);
    invalidate(*stream.capture);
    return report(CUDA_ERROR_STREAM_CAPTURE_MERGE, "one capture waits for an event of another");
  }
  if (event.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  stream.capture = event.capture;
  stream.frontier.insert(stream.frontier.end(), event.frontier.begin(), event.frontier.end());
  return CUDA_SUCCESS;
}

namespace {

// Whether all of a capture comes before the point that its stream has reached.
bool joined(const Capture& capture, const std::vector<size_t>& frontier) {
  std::vector<size_t> left = frontier;
  std::set<size_t> seen;
  while (!left.empty()) {
    const size_t node = left.back();
    left.pop_back();
    if (!seen.insert(node).second) continue;
    const auto& after = capture.graph.nodes[node].after;
    left.insert(left.end(), after.begin(), after.end());
  }
  return seen.size() == capture.graph.nodes.size();
}

// The nodes in an order that their dependencies allow; of those it allows more than one of, AMSA_TEST_ORDER picks.
std::vector<Operation> ordered(const Graph& graph) {
  const auto& nodes = graph.nodes;
  std::vector<bool> done(nodes.size());
  std::vector<Operation> operations;
  while (operations.size() < nodes.size()) {
    std::vector<size_t> ready;
    for (size_t n = 0; n < nodes.size(); ++n)
      if (!done[n] && std::all_of(nodes[n].after.begin(), nodes[n].after.end(), [&](size_t a) { return done[a]; }))
        ready.push_back(n);
    const size_t next = ready[turns(ready.size())[0]];
    done[next] = true;
    operations.push_back(nodes[next].operation);
  }
  return operations;
}

}  // namespace

}  // namespace driver

using namespace driver;

API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream == state().legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    auto capture = std::make_shared<Capture>();
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream.get();
    stream->capture = capture;
    state().captures.push_back(std::move(capture));
    return CUDA_SUCCESS;
  });
}

API CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    *out = nullptr;
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    const auto capture = stream->capture;
    if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->origin != stream.get()) {
      invalidate(*capture);
      return report(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "cuStreamEndCapture of a stream that only joined the capture");
    }
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id())
      return report(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "cuStreamEndCapture in another thread than the capture began in");
    const bool whole = joined(*capture, stream->frontier);
    end_capture(capture);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!whole)
      return report(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "cuStreamEndCapture, and a stream that joined was not waited for");
    *out = state().graphs.add(std::make_shared<Graph>(capture->graph));
    return CUDA_SUCCESS;
  });
}

API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *status = !stream->capture           ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                         : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
  });
}

API CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto graph = state().graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
    *count = graph->nodes.size();
    return CUDA_SUCCESS;
  });
}

API CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph handle, unsigned long long) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto graph = state().graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    auto executable = std::make_shared<Executable>();
    executable->operations = ordered(*graph);
    *out = state().executables.add(std::move(executable));
    return CUDA_SUCCESS;
  });
}

API CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const auto executable = state().executables.find(handle);
    const auto stream = find_stream(stream_handle);
    if (!executable || !stream) return CUDA_ERROR_INVALID_HANDLE;
    for (const Operation& operation : executable->operations)
      if (const std::string why = wrong(operation); !why.empty()) {
        fail(CUDA_ERROR_ILLEGAL_ADDRESS, "cuGraphLaunch, " + operation.what + ": " + why);
        return state().sticky;
      }
    // A graph does not run beside itself.
    if (!stream->capture && executable->last && !executable->last->reached) wait_for(*stream, executable->last);
    for (const Operation& operation : executable->operations)
      if (const CUresult refused = submit(stream, operation)) return refused;
    if (!stream->capture) executable->last = mark(stream);
    return CUDA_SUCCESS;
  });
}

API CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return call(__func__, kInit | kContext,
              [&](Lock&) { return state().executables.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}

API CUresult cuGraphDestroy(CUgraph handle) {
  return call(__func__, kInit | kContext,
              [&](Lock&) { return state().graphs.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}
