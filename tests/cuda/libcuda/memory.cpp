// Device memory and page-locked memory: both are host memory here.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "state.hpp"

namespace driver {

namespace {

constexpr size_t kPage = 4096, kZone = 256;           // no allocation is aligned to more than 256 bytes, as a real one may be
constexpr size_t kKept = size_t(256) << 20;           // of freed memory
constexpr uintptr_t kHint = uintptr_t(0x2a2a) << 32;  // so that two ints of a kernel's parameters are hardly taken for an address

// Page-aligned ends of a block with its red zones.
uintptr_t first_page(uintptr_t begin) { return begin - kZone; }
uintptr_t last_page(uintptr_t begin, size_t bytes) { return (begin + bytes + kZone + kPage - 1) / kPage * kPage; }

bool untouched(uintptr_t zone) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(zone);
  return std::all_of(bytes, bytes + kZone, [](unsigned char b) { return b == 0xff; });
}

std::string text(uintptr_t begin, const Block& block) {
  char buffer[96];
  snprintf(buffer, sizeof buffer, "the %s of %zu bytes at %#zx", block.host ? "page-locked memory" : "allocation", block.bytes,
           size_t(begin));
  return buffer;
}

}  // namespace

void* Arena::allocate(size_t bytes, bool host) {
  for (size_t size = size_t(1) << 40; !size_ && size >= size_t(1) << 32; size >>= 2) {
    void* const at = mmap(reinterpret_cast<void*>(kHint), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) continue;
    base_ = next_ = reinterpret_cast<uintptr_t>(at);
    size_ = size;
  }
  const uintptr_t begin = next_ + kZone, end = last_page(begin, bytes);
  if (end < begin || end > base_ + size_) return nullptr;
  void* const pages = reinterpret_cast<void*>(next_);
  if (mprotect(pages, end - next_, PROT_READ | PROT_WRITE) != 0) return nullptr;
  memset(pages, 0xff, end - next_);  // floats that are not numbers
  blocks_[begin] = {bytes, host, true};
  bytes_[host] += bytes;
  ++count_[host];
  next_ = end;
  return reinterpret_cast<void*>(begin);
}

void Arena::kill(Blocks::iterator block) {
  auto& [begin, b] = *block;
  b.live = false;
  memset(reinterpret_cast<void*>(begin), 0xff, b.bytes);
  dead_.push_back(block);
  for (kept_ += b.bytes; kept_ > kKept; dead_.pop_front()) {
    const auto& [oldest, old] = *dead_.front();
    const size_t pages = last_page(oldest, old.bytes) - first_page(oldest);
    madvise(reinterpret_cast<void*>(first_page(oldest)), pages, MADV_DONTNEED);
    mprotect(reinterpret_cast<void*>(first_page(oldest)), pages, PROT_NONE);
    kept_ -= old.bytes;
  }
}

bool Arena::release(uintptr_t begin, bool host) {
  const auto found = blocks_.find(begin);
  if (found == blocks_.end() || !found->second.live || found->second.host != host) return false;
  kill(found);
  bytes_[host] -= found->second.bytes;
  --count_[host];
  return true;
}

void Arena::abandon() {
  for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
    if (block->second.live) kill(block);
}

const Block* Arena::find(uintptr_t address, uintptr_t* begin) const {
  auto next = blocks_.upper_bound(address);
  if (next == blocks_.begin()) return nullptr;
  --next;
  *begin = next->first;
  return address - next->first <= next->second.bytes ? &next->second : nullptr;
}

std::string Arena::wrong(const Range& range) const {
  if (range.place == Place::kHost && !holds(range.begin)) return "";
  uintptr_t begin = 0;
  const Block* const block = find(range.begin, &begin);
  char address[32];
  snprintf(address, sizeof address, "%#zx", size_t(range.begin));
  if (!block) return std::string(address) + " lies in no allocation";
  const std::string which = text(begin, *block);
  if (!block->live) return std::string(address) + " lies in " + which + ", which was freed";
  if (range.bytes > begin + block->bytes - range.begin)
    return std::to_string(range.bytes) + " bytes from " + address + " go beyond " + which;
  if (range.place != Place::kPointer && block->host != (range.place == Place::kHost))
    return std::string(address) + " lies in " + which + ", on the other side";
  return "";
}

std::string Arena::overrun() const {
  for (const auto& [begin, block] : blocks_)
    if (block.live && !(untouched(begin - kZone) && untouched(begin + block.bytes))) return text(begin, block);
  return "";
}

}  // namespace driver

using namespace driver;

namespace {

CUresult allocate_host(const char* function, void** out, size_t bytes) {
  return call(function, kInit | kContext | kUncaptured, [&](Lock&) {
    if (!out || !bytes) return CUDA_ERROR_INVALID_VALUE;
    *out = state().arena.allocate(bytes, true);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  });
}

}  // namespace

API CUresult cuMemGetInfo_v2(size_t* available, size_t* total) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    const size_t used = state().arena.bytes(false);
    *available = state().memory - std::min(used, state().memory);
    *total = state().memory;
    return CUDA_SUCCESS;
  });
}

API CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  return call(__func__, kInit | kContext | kUncaptured, [&](Lock&) {
    State& s = state();
    if (!out || !bytes) return CUDA_ERROR_INVALID_VALUE;
    const size_t used = s.arena.bytes(false);
    if (used > s.memory || bytes > s.memory - used) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = reinterpret_cast<CUdeviceptr>(s.arena.allocate(bytes, false));
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  });
}

// As the real one, waits for all work first.
API CUresult cuMemFree_v2(CUdeviceptr address) {
  return call(__func__, kInit | kContext | kUncaptured, [&](Lock& lock) {
    if (!address) return CUDA_SUCCESS;
    if (const CUresult failed = finish_all(lock)) return failed;
    if (state().arena.release(address, false)) return CUDA_SUCCESS;
    return report(CUDA_ERROR_INVALID_VALUE, "cuMemFree of what is no allocation, or was freed before");
  });
}

API CUresult cuMemAllocHost_v2(void** out, size_t bytes) { return allocate_host(__func__, out, bytes); }

API CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned) { return allocate_host(__func__, out, bytes); }

// Waits for nothing: CUDA does not promise it.
API CUresult cuMemFreeHost(void* memory) {
  return call(__func__, kInit | kContext | kUncaptured, [&](Lock&) {
    if (state().arena.release(reinterpret_cast<uintptr_t>(memory), true)) return CUDA_SUCCESS;
    return report(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost of what is not page-locked memory, or was freed before");
  });
}

API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* memory, unsigned) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    uintptr_t begin = 0;
    const Block* const block = state().arena.find(reinterpret_cast<uintptr_t>(memory), &begin);
    if (!block || !block->live || !block->host) return CUDA_ERROR_INVALID_VALUE;
    *out = reinterpret_cast<CUdeviceptr>(memory);
    return CUDA_SUCCESS;
  });
}

API CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    uintptr_t begin = 0;
    const Block* const block = state().arena.find(address, &begin);
    if (!block || !block->live || address == begin + block->bytes) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = begin;
    if (bytes) *bytes = block->bytes;
    return CUDA_SUCCESS;
  });
}

API CUresult cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr address) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    uintptr_t begin = 0;
    const Block* const block = state().arena.find(address, &begin);
    if (!out || !block || !block->live) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
      case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext*>(out) = primary(); break;
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<unsigned*>(out) = block->host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        break;
      case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (attribute == CU_POINTER_ATTRIBUTE_HOST_POINTER && !block->host) return CUDA_ERROR_INVALID_VALUE;
        *static_cast<CUdeviceptr*>(out) = address;
        break;
      case CU_POINTER_ATTRIBUTE_IS_MANAGED: *static_cast<unsigned*>(out) = 0; break;
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(out) = 0; break;
      case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *static_cast<CUdeviceptr*>(out) = begin; break;
      case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *static_cast<size_t*>(out) = block->bytes; break;
      default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
  });
}
