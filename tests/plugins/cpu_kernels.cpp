// Drives the CPU kernels at many sizes and with extreme numbers, for the sanitizers; and every inner product that this
// processor can run against the order of sums that is promised. Prints "ok".

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>

#include "deformable_sample/conv.hpp"
#include "patch_match/cpu.hpp"
#include "patch_match/dots.cpp"  // its functions are internal

namespace {

std::mt19937 random_bits(1);

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

float draw_float() {
  switch (draw(0, 40)) {
    case 0: return std::numeric_limits<float>::quiet_NaN();
    case 1: return std::numeric_limits<float>::infinity();
    case 2: return -3e38f;
    case 3: return 1e-40f;
    default: return std::normal_distribution<float>()(random_bits);
  }
}

int32_t draw_position() {
  switch (draw(0, 9)) {
    case 0: return INT32_MIN;
    case 1: return INT32_MAX;
    default: return draw(-5, 30);
  }
}

// Exactly as large as it must be, so that a read beyond it is seen. Floats, or halves of any bits.
std::vector<char> features(size_t count, bool half) {
  std::vector<char> bytes(count * (half ? 2 : 4));
  for (size_t i = 0; i < count; ++i) {
    const float value = draw_float();
    const auto bits = uint16_t(random_bits());
    if (half)
      std::memcpy(&bytes[2 * i], &bits, 2);
    else
      std::memcpy(&bytes[4 * i], &value, 4);
  }
  return bytes;
}

std::vector<int32_t> positions(size_t count) {
  std::vector<int32_t> values(count);
  for (auto& value : values) value = draw_position();
  return values;
}

[[noreturn]] void fail(const char* what, const char* why) {
  std::fprintf(stderr, "%s: %s\n", what, why);
  std::exit(1);
}

void patch_match() {
  const char* schedules[] = {"published", "paper", "fast", "exact"};
  const char* arithmetics[] = {"float", "int8"};
  AmsaPatchMatch call{};
  call.iterations = draw(1, 2);
  call.level = draw(0, 3);
  call.pad = draw(0, 1);
  call.init_scale = draw(1, 2);
  call.schedule = schedules[draw(0, 3)];
  call.arithmetic = arithmetics[draw(0, 1)];
  call.half = draw(0, 1);
  call.query_channels_last = draw(0, 1);
  call.ref_channels_last = draw(0, 1);
  call.threads = draw(1, 3);
  const int64_t n = draw(1, 2), c = draw(1, 50), least = call.pad ? 1 : 3;
  int64_t height = draw(int(least), 20), width = draw(int(least), 20);
  if (call.init_scale == 2) {
    height += height % 2;
    width += width % 2;
  }
  const int64_t shapes[4][4] = {{draw(0, 1) ? n : 1, c, height, width},
                                {n, c, draw(int(least), 20), draw(int(least), 20)},
                                {draw(0, 1) ? n : 1, 2, 1, 1},
                                {draw(0, 1) ? n : 1, 2, call.init_scale == 2 ? height / 2 : height - 2 + 2 * call.pad,
                                 call.init_scale == 2 ? width / 2 : width - 2 + 2 * call.pad}};
  size_t sizes[4];
  for (int i = 0; i < 4; ++i) sizes[i] = size_t(shapes[i][0] * shapes[i][1] * shapes[i][2] * shapes[i][3]);
  std::memcpy(call.query_shape, shapes[0], sizeof shapes[0]);
  std::memcpy(call.ref_shape, shapes[1], sizeof shapes[1]);
  std::memcpy(call.valid_shape, shapes[2], sizeof call.valid_shape);
  std::memcpy(call.init_shape, shapes[3], sizeof shapes[3]);
  const auto query = features(sizes[0], call.half), ref = features(sizes[1], call.half);
  const auto valid = positions(sizes[2]), init = positions(sizes[3]);
  const size_t out = size_t(n * (height - 2 + 2 * call.pad) * (width - 2 + 2 * call.pad));
  std::vector<int32_t> match(2 * out);
  std::vector<float> relevance(out);
  call.query = query.data();
  call.ref = ref.data();
  call.valid = valid.data();
  call.init = init.data();
  call.match = match.data();
  call.relevance = relevance.data();
  if (const char* message = amsa_patch_match(&call)) fail("amsa_patch_match", message);
  for (const float score : relevance)
    if (!(score >= -FLT_MAX)) fail("amsa_patch_match", "a relevance is not a number");
  call.ref_shape[3] = int64_t(1) << 40;
  if (amsa_patch_match(&call) == nullptr) fail("amsa_patch_match", "takes a ref of 2^40 columns");
}

void deformable_sample() {
  AmsaDeformableSample call{};
  const int64_t scales[] = {1, 2, 4};
  call.scale = scales[draw(0, 2)];
  call.groups = draw(1, 3);
  call.half = draw(0, 1);
  call.value_channels_last = draw(0, 1);
  call.offset_mask_channels_last = draw(0, 1);
  call.samples_channels_last = draw(0, 1);
  call.threads = draw(1, 3);
  const int64_t n = draw(1, 2), c = call.groups * draw(1, 20), h = draw(1, 6), w = draw(1, draw(0, 3) ? 6 : 40);
  const int64_t shapes[3][4] = {{draw(0, 1) ? n : 1, c, draw(1, 20), draw(1, 20)},
                                {n, 2, h + 2, w + 2},
                                {draw(0, 1) ? n : 1, (draw(0, 1) ? 27 : 9) * call.groups, call.scale * h, call.scale * w}};
  size_t sizes[3];
  for (int i = 0; i < 3; ++i) sizes[i] = size_t(shapes[i][0] * shapes[i][1] * shapes[i][2] * shapes[i][3]);
  std::memcpy(call.value_shape, shapes[0], sizeof shapes[0]);
  std::memcpy(call.match_shape, shapes[1], sizeof shapes[1]);
  std::memcpy(call.offset_mask_shape, shapes[2], sizeof shapes[2]);
  const auto value = features(sizes[0], call.half), offset_mask = features(sizes[2], call.half);
  const auto match = positions(sizes[1]);
  const size_t out = size_t(n * 9 * c * call.scale * h * call.scale * w);
  std::vector<char> samples(out * (call.half ? 2 : 4));
  call.value = value.data();
  call.match = match.data();
  call.offset_mask = offset_mask.data();
  call.samples = samples.data();
  if (const char* message = amsa_deformable_sample(&call)) fail("amsa_deformable_sample", message);
  AmsaDeformableConv conv{};
  conv.sample = call;
  conv.filters = draw(1, 40);
  const auto weight = features(size_t(conv.filters * 9 * c), call.half), bias = features(size_t(conv.filters), call.half);
  std::vector<char> result(out / (9 * c) * conv.filters * (call.half ? 2 : 4));
  conv.weight = weight.data();
  conv.bias = draw(0, 1) ? bias.data() : nullptr;
  conv.negative_slope = draw(0, 1) ? 1.0f : 0.1f;
  conv.out = result.data();
  if (const char* message = amsa_deformable_conv(&conv)) fail("amsa_deformable_conv", message);
  if (call.half || !call.value_channels_last || !call.offset_mask_channels_last || shapes[2][0] != n) return;
  std::vector<float> grad(out, 1.0f), grad_value(sizes[0]), grad_offset_mask(sizes[2]);
  const char* message = amsa_deformable_sample_backward(&call, grad.data(), grad_value.data(), grad_offset_mask.data());
  if (message != nullptr) fail("amsa_deformable_sample_backward", message);
}

// The sums in the promised order: 16 partial sums for each of three columns, added as (a + b) + c and then by halves.
float ordered_dot(const float* query, long query_pitch, const float* ref, long ref_pitch, int channels) {
  float sums[3][16] = {};
  for (int row = 0; row < 3; ++row)
    for (int c = 0; c < channels; ++c)
      for (int col = 0; col < 3; ++col) {
        const int at = col * channels + c;
        sums[col][c % 16] += query[row * query_pitch + at] * ref[row * ref_pitch + at];
      }
  float lanes[16];
  for (int l = 0; l < 16; ++l) lanes[l] = (sums[0][l] + sums[1][l]) + sums[2][l];
  for (int width = 8; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

void inner_products(int channels) {
  constexpr int kCount = 5, kPixels = 8;  // reference patches side by side
  const long query_pitch = 3L * channels, ref_pitch = long(kPixels) * channels;
  amsa::Buffer<float> query(3 * query_pitch), ref(3 * ref_pitch);
  amsa::Buffer<int8_t> query8(3 * query_pitch), ref8(3 * ref_pitch);
  for (long i = 0; i < 3 * query_pitch; ++i) {
    query.get()[i] = std::normal_distribution<float>()(random_bits);
    query8.get()[i] = int8_t(draw(0, 2) ? 127 : draw(-127, 127));
  }
  for (long i = 0; i < 3 * ref_pitch; ++i) {
    ref.get()[i] = std::normal_distribution<float>()(random_bits);
    ref8.get()[i] = int8_t(draw(0, 2) ? 127 : draw(-127, 127));
  }
  const float* refs[kCount];
  const int8_t* refs8[kCount];
  int32_t sums[kCount] = {}, exact[kCount] = {};
  for (int k = 0; k < kCount; ++k) {
    refs[k] = ref.get() + k * channels;
    refs8[k] = ref8.get() + k * channels;
    for (int row = 0; row < 3; ++row)
      for (int i = 0; i < 3 * channels; ++i) {
        sums[k] += refs8[k][row * ref_pitch + i];
        exact[k] += query8.get()[row * query_pitch + i] * refs8[k][row * ref_pitch + i];
      }
  }
  for (int count = 1; count <= kCount; ++count) {
    float dots[kCount];
    amsa::dots_of(float())(query.get(), query_pitch, refs, ref_pitch, channels, count, nullptr, dots);
    for (int k = 0; k < count; ++k)
      if (dots[k] != ordered_dot(query.get(), query_pitch, refs[k], ref_pitch, channels)) fail("float_dots", "another order");
    if (channels % 32 != 0) continue;
    std::vector<amsa::Int8Dots> implementations{amsa::int8_dots, amsa::dots_of(int8_t())};
#ifdef AMSA_X86
    if (__builtin_cpu_supports("avx2")) implementations.push_back(amsa::int8_dots_avx2);
#endif
    for (const auto implementation : implementations) {
      int32_t dots8[kCount];
      implementation(query8.get(), query_pitch, refs8, ref_pitch, channels, count, sums, dots8);
      for (int k = 0; k < count; ++k)
        if (dots8[k] != exact[k]) fail("int8_dots", "not exact");
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < 400; ++i) patch_match();
  for (int i = 0; i < 200; ++i) deformable_sample();
  for (const int channels : {16, 32, 48, 64, 96, 128, 1056}) inner_products(channels);
  std::puts("ok");
}
