// Runs a job: reads buffers and launches from a file, launches, writes the buffers to another. A program of its own, as the
// sanitizers cannot be loaded into Python. harness.py writes the jobs; every number is little-endian.
//
//   driver JOB RESULT ORDER SEED

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "device.hpp"
#include "scheduler.hpp"

namespace {

[[noreturn]] void stop(const std::string& message) {
  fprintf(stderr, "device: %s\n", message.c_str());
  exit(3);
}

class Job {
 public:
  explicit Job(const char* path) : file_(fopen(path, "rb")) {
    if (!file_) stop(std::string("cannot read ") + path);
  }

  void read(void* to, size_t bytes) {
    if (fread(to, 1, bytes, file_) != bytes) stop("the job file ends early");
  }
  uint64_t number() {
    uint64_t n;
    read(&n, sizeof n);
    return n;
  }
  dim3 size() {
    const uint64_t x = number(), y = number(), z = number();
    return dim3(unsigned(x), unsigned(y), unsigned(z));
  }

 private:
  FILE* file_;
};

struct Buffer {
  char* data;
  size_t bytes;
};

// Each an allocation of its own, aligned as cudaMalloc's are: AddressSanitizer sees the first byte before and behind.
Buffer read_buffer(Job& job) {
  Buffer buffer{nullptr, job.number()};
  void* memory;
  if (posix_memalign(&memory, 256, buffer.bytes) != 0) stop("out of memory");
  buffer.data = static_cast<char*>(memory);
  job.read(buffer.data, buffer.bytes);
  return buffer;
}

void run_launch(Job& job, const std::vector<Buffer>& buffers, device::Order order, std::mt19937& random) {
  std::string name(job.number(), ' ');
  job.read(&name[0], name.size());
  device::Shape shape;
  shape.grid = job.size();
  shape.block = job.size();
  shape.dynamic_shared = unsigned(job.number());
  shape.static_shared = unsigned(job.number());
  std::vector<char> params(job.number());
  job.read(params.data(), params.size());
  for (uint64_t left = job.number(); left > 0; --left) {  // addresses: where in the parameters, which buffer, where in it
    const uint64_t at = job.number(), buffer = job.number(), offset = job.number();
    char* const address = buffers.at(buffer).data + offset;
    memcpy(params.data() + at, &address, sizeof address);
  }
  const device::Kernel* const kernel = device::find_kernel(name);
  if (!kernel) stop("no kernel " + name + " in the sources");
  if (params.size() != kernel->params_size)
    stop(name + ": the launch's parameters take " + std::to_string(params.size()) + " bytes, the kernel's " +
         std::to_string(kernel->params_size));
  device::launch(*kernel, shape, params.data(), order, random);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) stop("usage: driver JOB RESULT ORDER SEED");
  Job job(arguments[1]);
  const std::string order_name = arguments[3];
  const device::Order order = order_name == "forward"    ? device::Order::kForward
                              : order_name == "reversed" ? device::Order::kReversed
                                                         : device::Order::kShuffled;
  std::mt19937 random(unsigned(strtoul(arguments[4], nullptr, 10)));
  std::vector<Buffer> buffers(job.number());
  for (Buffer& buffer : buffers) buffer = read_buffer(job);
  for (uint64_t left = job.number(); left > 0; --left) run_launch(job, buffers, order, random);
  FILE* const result = fopen(arguments[2], "wb");
  bool written = result;
  for (const Buffer& buffer : buffers) written = written && fwrite(buffer.data, 1, buffer.bytes, result) == buffer.bytes;
  if (!written || fclose(result) != 0) stop(std::string("cannot write ") + arguments[2]);
}
