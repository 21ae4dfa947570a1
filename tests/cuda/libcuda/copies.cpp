// Copies and fills. All are boxes: rows of bytes, in planes, in a volume. A queued one reads its source when it runs.
#include <algorithm>
#include <cstring>

#include "state.hpp"

namespace driver {

namespace {

constexpr size_t kMaxPitch = 2147483647;

struct Side {
  Place place;
  uintptr_t base;
  size_t x = 0, y = 0, z = 0, pitch = 0, rows = 0;  // where the box begins; bytes of a row, rows of a plane
};

struct Box {
  Side from, to;
  size_t width, height = 1, depth = 1;

  uintptr_t row(const Side& side, size_t y, size_t z) const {
    return side.base + ((side.z + z) * side.rows + side.y + y) * side.pitch + side.x;
  }
  Range range(const Side& side) const {
    const uintptr_t begin = row(side, 0, 0);
    return {begin, row(side, height - 1, depth - 1) + width - begin, side.place};
  }
  bool fits(const Side& side) const {
    const bool many = height > 1 || depth > 1 || side.y || side.z;
    const bool planes = depth > 1 || side.z;
    if (!side.base || side.pitch > kMaxPitch) return false;
    return !(many && side.pitch < side.x + width) && !(planes && side.rows < side.y + height);
  }
  void copy() const {
    for (size_t z = 0; z < depth; ++z)
      for (size_t y = 0; y < height; ++y)
        memmove(reinterpret_cast<void*>(row(to, y, z)), reinterpret_cast<const void*>(row(from, y, z)), width);
  }
};

CUresult invalid(const std::string& what, const std::string& why) { return report(CUDA_ERROR_INVALID_VALUE, what + ": " + why); }

// What both kinds of copy check when they are called.
CUresult check(const char* what, const Box& box) {
  for (const Side& side : {box.from, box.to}) {
    if (!box.fits(side)) return invalid(what, "a null address, or a pitch or height that the box does not fit");
    if (const std::string why = state().arena.wrong(box.range(side)); !why.empty()) return invalid(what, why);
  }
  return CUDA_SUCCESS;
}

CUresult queue(const char* function, const Box& box, CUstream handle) {
  return call(function, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!box.width || !box.height || !box.depth) return CUDA_SUCCESS;
    if (const CUresult refused = check(function, box)) return refused;
    Operation operation;
    operation.what = function;
    operation.touches = {box.range(box.from), box.range(box.to)};
    operation.work = [box] { box.copy(); };
    return submit(stream, std::move(operation));
  });
}

// On the legacy stream, so it waits for the blocking streams and for no other.
CUresult copy_now(const char* function, const Box& box) {
  return call(function, kInit | kContext | kUncaptured, [&](Lock& lock) {
    if (const CUresult refused = legacy_refused(function)) return refused;
    if (!box.width) return CUDA_SUCCESS;
    if (const CUresult refused = check(function, box)) return refused;
    if (const CUresult failed = finish(state().legacy, lock)) return failed;
    box.copy();
    return CUDA_SUCCESS;
  });
}

template <class Value>
CUresult fill(const char* function, CUdeviceptr to, Value value, size_t count, CUstream handle) {
  return call(function, kInit | kContext, [&](Lock&) {
    const auto stream = find_stream(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!count) return CUDA_SUCCESS;
    const Range range{uintptr_t(to), count * sizeof value, Place::kDevice};
    if (to % sizeof value) return invalid(function, "the address is not aligned");
    if (const std::string why = state().arena.wrong(range); !why.empty()) return invalid(function, why);
    Operation operation;
    operation.what = function;
    operation.touches = {range};
    operation.work = [=] { std::fill_n(reinterpret_cast<Value*>(to), count, value); };
    return submit(stream, std::move(operation));
  });
}

Side host(const void* memory) { return {Place::kHost, reinterpret_cast<uintptr_t>(memory)}; }
Side on_device(CUdeviceptr address) { return {Place::kDevice, uintptr_t(address)}; }

Side side(CUmemorytype type, const void* host_memory, CUdeviceptr address) {
  if (type == CU_MEMORYTYPE_HOST) return host(host_memory);
  return on_device(type == CU_MEMORYTYPE_DEVICE ? address : 0);  // neither arrays nor unified memory: null is refused
}

}  // namespace

}  // namespace driver

using namespace driver;

API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  return copy_now(__func__, {host(from), on_device(to), bytes});
}

API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  return copy_now(__func__, {on_device(from), host(to), bytes});
}

API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return queue(__func__, {host(from), on_device(to), bytes}, stream);
}

API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return queue(__func__, {on_device(from), host(to), bytes}, stream);
}

API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return queue(__func__, {on_device(from), on_device(to), bytes}, stream);
}

API CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* c, CUstream stream) {
  Side from = side(c->srcMemoryType, c->srcHost, c->srcDevice), to = side(c->dstMemoryType, c->dstHost, c->dstDevice);
  from.x = c->srcXInBytes, from.y = c->srcY, from.pitch = c->srcPitch;
  to.x = c->dstXInBytes, to.y = c->dstY, to.pitch = c->dstPitch;
  return queue(__func__, {from, to, c->WidthInBytes, c->Height}, stream);
}

API CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* c, CUstream stream) {
  Side from = side(c->srcMemoryType, c->srcHost, c->srcDevice), to = side(c->dstMemoryType, c->dstHost, c->dstDevice);
  from.x = c->srcXInBytes, from.y = c->srcY, from.z = c->srcZ, from.pitch = c->srcPitch, from.rows = c->srcHeight;
  to.x = c->dstXInBytes, to.y = c->dstY, to.z = c->dstZ, to.pitch = c->dstPitch, to.rows = c->dstHeight;
  return queue(__func__, {from, to, c->WidthInBytes, c->Height, c->Depth}, stream);
}

API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  return fill(__func__, to, value, count, stream);
}

API CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  return fill(__func__, to, value, count, stream);
}
