// Exhaustive search, by pixel products. A patch product is the sum of nine products of single pixels, and a pixel pair is
// part of nine patch pairs, so the pixels of a query row are multiplied with those of a reference row once (a matrix product
// over the channels), summed three by three along the diagonal (x + j, u + j), and three such sums of the row pairs
// (y + i, v + i) are a row of scores. That is nine times fewer multiplications than patch by patch.
//
// Row pairs are taken along diagonals v - y = const: each is computed once and only the last three sums are kept.
//
// Float32 uses explicit fused multiply-adds, also where the processor has none: rounding is then the same everywhere, and
// where it has them a search takes 0.58 of the time that multiplying and adding takes (Xeon with AVX-512, one thread, 80x80,
// C=256: 224 against 383 ms of CPU time in one run). The products alone reach 172 GFLOP/s there, which is the core's peak
// (twice the 84 of unfused operations in registers). Without FMA hardware the emulation reaches 0.6 GFLOP/s.
// `python tests/plugins/test_exact_search.py measure` prints the search's times.

#include "exact.hpp"

#include <cfloat>
#include <cstring>

#include "../cpu_common.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AMSA_EXACT_X86 1
#if __GNUC__ >= 11  // the first that knows these instructions
#define AMSA_EXACT_AVX_VNNI 1
#endif
#include <immintrin.h>
#endif

namespace {

using amsa::Buffer;
using amsa::ExactGrid;
using amsa::ExactOptions;
using amsa::ExactPath;

// Reference pixels side by side in packed memory: 64 bytes per step, where a step is 4 bytes of a pixel: one channel in
// float32, two in int16, four in int8. So all kernels have the same shape: broadcast 4 bytes of a query pixel, multiply.
constexpr int kUnit = 16;
constexpr int kUnitBytes = 64;
// Diagonals side by side: a reference row stays in the L2 cache for the next step.
constexpr int kDiagonals = 2;
// Pixels of a tile's row. Sums of three rows of two diagonals are 3 * 2 * 250 * 256 * 4 bytes = 1.5 MB, made for an L2 cache
// of 2 MB; half as wide and half as high (0.4 MB) takes 1.05 to 1.2 times as long on one, for more pixels at tile borders.
constexpr int kQueryPixels = 252;
constexpr int kRefPixels = 256;
constexpr int kQueryRows = 512;

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

// ---- Products of ROWS query pixels with UNITS * 16 reference pixels

// query: ROWS pixels, `ld` bytes apart. ref: packed, units `unit` bytes apart. out: [ROWS, pitch]. bias: what to start from.
template <class Acc>
using Tile = void (*)(const char* query, long ld, const char* ref, long unit, int steps, Acc* out, long pitch,
                      const int32_t* bias);

// Every lane is one chain over ascending channels, so the width of registers and tiles changes no result. Rows are addressed
// in threes from a common pointer: 14 pointers would not fit in the 16 integer registers.
#define AMSA_EXACT_TILE(NAME, OP, ATTRIBUTE)                                                                          \
  template <int ROWS, int UNITS>                                                                                      \
  ATTRIBUTE void NAME(const char* query, long ld, const char* ref, long unit, int steps, OP::Acc* out, long pitch,    \
                      const int32_t* bias) {                                                                          \
    constexpr int kRegs = kUnitBytes / int(sizeof(OP::Reg)), kLanes = kUnit / kRegs, kThrees = (ROWS + 2) / 3;        \
    OP::Reg acc[ROWS][UNITS * kRegs];                                                                                 \
    _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; ++i)                                                           \
      _Pragma("GCC unroll 4") for (int v = 0; v < UNITS * kRegs; ++v) acc[i][v] = OP::start(bias, i);                 \
    const char* rows[kThrees];                                                                                        \
    _Pragma("GCC unroll 8") for (int t = 0; t < kThrees; ++t) rows[t] = query + 3 * t * ld;                           \
    for (int k = 0; k < steps; ++k) {                                                                                 \
      OP::Reg b[UNITS * kRegs];                                                                                       \
      _Pragma("GCC unroll 4") for (int v = 0; v < UNITS * kRegs; ++v)                                                 \
        b[v] = OP::load(ref + (v / kRegs) * unit + (v % kRegs) * int(sizeof(OP::Reg)));                               \
      _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; ++i) {                                                       \
        const OP::Reg a = OP::broadcast(rows[i / 3] + (i % 3) * ld);                                                  \
        _Pragma("GCC unroll 4") for (int v = 0; v < UNITS * kRegs; ++v) acc[i][v] = OP::step(acc[i][v], a, b[v]);     \
      }                                                                                                               \
      ref += kUnitBytes;                                                                                              \
      _Pragma("GCC unroll 8") for (int t = 0; t < kThrees; ++t) rows[t] += 4;                                         \
    }                                                                                                                 \
    _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; ++i)                                                           \
      _Pragma("GCC unroll 4") for (int v = 0; v < UNITS * kRegs; ++v)                                                 \
        OP::store(out + i * pitch + v * kLanes, acc[i][v]);                                                           \
  }

inline float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  // The product is exact in double. Rounding the sum to odd makes the second rounding, to float, the right one.
  const double p = double(a) * b, s = p + c;
  const double t = s - p, error = (p - (s - t)) + (c - t);
  int64_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  const int64_t inexact = (error > 0 || error < 0) & !(bits & 1);  // of Inf and NaN the error is NaN
  bits += inexact * (((error > 0) == (s > 0)) ? 1 : -1);
  double odd;
  std::memcpy(&odd, &bits, sizeof odd);
  return float(odd);
#endif
}

template <class T>
struct Lanes {
  T lane[kUnit];
};

struct PortableFloat {
  using Acc = float;
  using Reg = Lanes<float>;
  static Reg start(const int32_t*, int) { return {}; }
  static Reg load(const char* p) {
    Reg r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  static Reg broadcast(const char* p) {
    float value;
    std::memcpy(&value, p, sizeof value);
    Reg r;
    for (float& l : r.lane) l = value;
    return r;
  }
  static Reg step(Reg c, const Reg& a, const Reg& b) {
    for (int l = 0; l < kUnit; ++l) c.lane[l] = fused(a.lane[l], b.lane[l], c.lane[l]);
    return c;
  }
  static void store(float* p, const Reg& r) { std::memcpy(p, &r, sizeof r); }
};
AMSA_EXACT_TILE(portable_float, PortableFloat, )

struct PortablePairs {  // pairs of int16
  using Acc = int32_t;
  using Reg = Lanes<int32_t>;
  static Reg start(const int32_t*, int) { return {}; }
  static Reg load(const char* p) {
    Reg r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  static Reg broadcast(const char* p) {
    int32_t value;
    std::memcpy(&value, p, sizeof value);
    Reg r;
    for (int32_t& l : r.lane) l = value;
    return r;
  }
  static Reg step(Reg c, const Reg& a, const Reg& b) {
    int16_t u[2 * kUnit], v[2 * kUnit];
    std::memcpy(u, &a, sizeof u);
    std::memcpy(v, &b, sizeof v);
    for (int l = 0; l < kUnit; ++l) c.lane[l] += int32_t(u[2 * l]) * v[2 * l] + int32_t(u[2 * l + 1]) * v[2 * l + 1];
    return c;
  }
  static void store(int32_t* p, const Reg& r) { std::memcpy(p, &r, sizeof r); }
};
AMSA_EXACT_TILE(portable_pairs, PortablePairs, )

#ifdef AMSA_EXACT_X86

inline int32_t word(const char* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// What a function is built for and the functions it is built from must agree, or they cannot be inlined.
#define AMSA_AVX2 __attribute__((target("avx2,fma")))
#define AMSA_AVX_VNNI __attribute__((target("avx2,fma,avxvnni")))
#define AMSA_AVX512 __attribute__((target("avx512f")))
#define AMSA_AVX512_VNNI __attribute__((target("avx512f,avx512vnni")))

struct Avx2Float {
  using Acc = float;
  using Reg = __m256;
  AMSA_AVX2 static inline Reg start(const int32_t*, int) { return _mm256_setzero_ps(); }
  AMSA_AVX2 static inline Reg load(const char* p) { return _mm256_load_ps(reinterpret_cast<const float*>(p)); }
  AMSA_AVX2 static inline Reg broadcast(const char* p) { return _mm256_castsi256_ps(_mm256_set1_epi32(word(p))); }
  AMSA_AVX2 static inline Reg step(Reg c, Reg a, Reg b) { return _mm256_fmadd_ps(a, b, c); }
  AMSA_AVX2 static inline void store(float* p, Reg r) { _mm256_store_ps(p, r); }
};
AMSA_EXACT_TILE(avx2_float, Avx2Float, AMSA_AVX2)

struct Avx2Pairs {
  using Acc = int32_t;
  using Reg = __m256i;
  AMSA_AVX2 static inline Reg start(const int32_t*, int) { return _mm256_setzero_si256(); }
  AMSA_AVX2 static inline Reg load(const char* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  AMSA_AVX2 static inline Reg broadcast(const char* p) { return _mm256_set1_epi32(word(p)); }
  AMSA_AVX2 static inline Reg step(Reg c, Reg a, Reg b) { return _mm256_add_epi32(c, _mm256_madd_epi16(a, b)); }
  AMSA_AVX2 static inline void store(int32_t* p, Reg r) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), r); }
};
AMSA_EXACT_TILE(avx2_pairs, Avx2Pairs, AMSA_AVX2)

#ifdef AMSA_EXACT_AVX_VNNI
struct AvxVnni {
  using Acc = int32_t;
  using Reg = __m256i;
  AMSA_AVX_VNNI static inline Reg start(const int32_t* bias, int i) { return _mm256_set1_epi32(bias[i]); }
  AMSA_AVX_VNNI static inline Reg load(const char* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  AMSA_AVX_VNNI static inline Reg broadcast(const char* p) { return _mm256_set1_epi32(word(p)); }
  AMSA_AVX_VNNI static inline Reg step(Reg c, Reg a, Reg b) { return _mm256_dpbusd_avx_epi32(c, b, a); }
  AMSA_AVX_VNNI static inline void store(int32_t* p, Reg r) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), r); }
};
AMSA_EXACT_TILE(avx_vnni, AvxVnni, AMSA_AVX_VNNI)
#endif

struct Avx512Float {
  using Acc = float;
  using Reg = __m512;
  AMSA_AVX512 static inline Reg start(const int32_t*, int) { return _mm512_setzero_ps(); }
  AMSA_AVX512 static inline Reg load(const char* p) { return _mm512_load_ps(p); }
  AMSA_AVX512 static inline Reg broadcast(const char* p) { return _mm512_castsi512_ps(_mm512_set1_epi32(word(p))); }
  AMSA_AVX512 static inline Reg step(Reg c, Reg a, Reg b) { return _mm512_fmadd_ps(a, b, c); }
  AMSA_AVX512 static inline void store(float* p, Reg r) { _mm512_store_ps(p, r); }
};
AMSA_EXACT_TILE(avx512_float, Avx512Float, AMSA_AVX512)

struct Avx512Vnni {
  using Acc = int32_t;
  using Reg = __m512i;
  AMSA_AVX512_VNNI static inline Reg start(const int32_t* bias, int i) { return _mm512_set1_epi32(bias[i]); }
  AMSA_AVX512_VNNI static inline Reg load(const char* p) { return _mm512_load_si512(p); }
  AMSA_AVX512_VNNI static inline Reg broadcast(const char* p) { return _mm512_set1_epi32(word(p)); }
  AMSA_AVX512_VNNI static inline Reg step(Reg c, Reg a, Reg b) { return _mm512_dpbusd_epi32(c, b, a); }
  AMSA_AVX512_VNNI static inline void store(int32_t* p, Reg r) { _mm512_store_si512(p, r); }
};
AMSA_EXACT_TILE(avx512_vnni, Avx512Vnni, AMSA_AVX512_VNNI)

#endif

// ---- From products to scores

// A row of a tile's best scores so far and where they are.
struct Best {
  float* score;
  int32_t* match;
};

template <class Acc>
struct Row {
  const Acc* product;          // [width + 2, pitch]: this row pair's
  Acc* sum;                    // [width, pitch]: where this row pair's sums go
  const Acc *before, *before2; // those of the row pairs before; null: no scores yet
  const float* inverse_norm;   // [pitch]; NaN beyond the last position
  int width, pitch;            // query positions; products of a row
  int positions;               // reference positions, rounded up to whole registers
  int y, x;                    // the first reference position
};

template <class T, int kBytes>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes)));
};

// Most rows hold no new best score, so the maximum alone is computed first, and its place only where it wins.
template <class Acc, int kBytes>
__attribute__((always_inline)) inline void add_row(const Row<Acc> row, const Best best) {
  using V = typename Vector<Acc, kBytes>::type;
  using F = typename Vector<float, kBytes>::type;
  constexpr int kLanes = kBytes / 4;
  const long pitch = row.pitch;
  for (int x = 0; x < row.width; ++x) {
    const Acc* p = row.product + x * pitch;
    Acc* sum = row.sum + x * pitch;
    V a, b, c;
    if (row.before == nullptr) {
      for (int u = 0; u < row.positions; u += kLanes) {
        std::memcpy(&a, p + u, kBytes);
        std::memcpy(&b, p + pitch + u + 1, kBytes);
        std::memcpy(&c, p + 2 * pitch + u + 2, kBytes);
        a = (a + b) + c;
        std::memcpy(sum + u, &a, kBytes);
      }
      continue;
    }
    const Acc *s1 = row.before + x * pitch, *s2 = row.before2 + x * pitch;
    const float known = best.score[x];
    // Tiles are not visited in row-major order: an equal score may be of an earlier position, and then counts.
    int32_t* match = best.match + 2 * x;
    const bool earlier = row.y < match[0] || (row.y == match[0] && row.x < match[1]);
    F top = F{} + (earlier ? -FLT_MAX : known), inverse, value;
    for (int u = 0; u < row.positions; u += kLanes) {
      std::memcpy(&a, p + u, kBytes);
      std::memcpy(&b, p + pitch + u + 1, kBytes);
      std::memcpy(&c, p + 2 * pitch + u + 2, kBytes);
      c = (a + b) + c;
      std::memcpy(sum + u, &c, kBytes);
      std::memcpy(&a, s2 + u, kBytes);
      std::memcpy(&b, s1 + u, kBytes);
      std::memcpy(&inverse, row.inverse_norm + u, kBytes);
      value = __builtin_convertvector((a + b) + c, F) * inverse;
      top = value > top ? value : top;  // false for NaN
    }
    using Quarter = typename Vector<float, 16>::type;
    Quarter most, part;
    std::memcpy(&most, &top, 16);
    for (int i = 16; i < kBytes; i += 16) {
      std::memcpy(&part, reinterpret_cast<const char*>(&top) + i, 16);
      most = part > most ? part : most;
    }
    const float highest = std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
    if (!(highest > known || (earlier && highest == known))) continue;
    for (int u = 0; u < row.positions; ++u)
      if (float((s2[u] + s1[u]) + sum[u]) * row.inverse_norm[u] == highest) {
        if (highest > known || row.y < match[0] || row.x + u < match[1]) {
          best.score[x] = highest;
          match[0] = row.y;
          match[1] = row.x + u;
        }
        break;
      }
  }
}

template <class Acc>
void portable_add(const Row<Acc>& row, const Best& best) {
  add_row<Acc, 16>(row, best);
}

#ifdef AMSA_EXACT_X86
template <class Acc>
AMSA_AVX2 void avx2_add(const Row<Acc>& row, const Best& best) {
  add_row<Acc, 32>(row, best);
}
template <class Acc>
AMSA_AVX512 void avx512_add(const Row<Acc>& row, const Best& best) {
  add_row<Acc, 64>(row, best);
}
#endif

// ---- Packing

// 16 reference pixels -> [steps][16 pixels][4 bytes]; pixels from `valid` on are zero.
void pack(const float* pixels, long channels, int valid, float* to) {
  for (long k = 0; k < channels; ++k)
    for (int l = 0; l < kUnit; ++l) to[k * kUnit + l] = l < valid ? pixels[l * channels + k] : 0.0f;
}

void pack_pairs(const int8_t* pixels, long channels, int valid, int16_t* to) {
  for (long k = 0; k < channels; k += 2)
    for (int l = 0; l < kUnit; ++l)
      for (int j = 0; j < 2; ++j) *to++ = l < valid ? pixels[l * channels + k + j] : 0;
}

// VNNI multiplies unsigned with signed: the reference gets 128 more, and each query pixel's sum starts at -128 times its own.
void pack_bytes(const int8_t* pixels, long channels, int valid, uint8_t* to) {
  for (long k = 0; k < channels; k += 4)
    for (int l = 0; l < kUnit; ++l)
      for (int j = 0; j < 4; ++j) *to++ = uint8_t(l < valid ? pixels[l * channels + k + j] + 128 : 128);
}

// ---- The kernels of a processor

template <class Acc>
struct Kernels {
  int rows, units;             // the largest tile
  const Tile<Acc> (*tile)[2];  // [rows - 1][units - 1]
  void (*add)(const Row<Acc>&, const Best&);
  int step;                    // channels per 4 bytes of packed memory
};

#define AMSA_T(NAME, R) {NAME<R, 1>, nullptr}
#define AMSA_TT(NAME, R) {NAME<R, 1>, NAME<R, 2>}
#define AMSA_UP_TO_6(NAME) {AMSA_T(NAME, 1), AMSA_T(NAME, 2), AMSA_T(NAME, 3), AMSA_T(NAME, 4), AMSA_T(NAME, 5), AMSA_T(NAME, 6)}
#define AMSA_UP_TO_14(NAME)                                                                                          \
  {AMSA_TT(NAME, 1),  AMSA_TT(NAME, 2),  AMSA_TT(NAME, 3),  AMSA_TT(NAME, 4),  AMSA_TT(NAME, 5),  AMSA_TT(NAME, 6), \
   AMSA_TT(NAME, 7),  AMSA_TT(NAME, 8),  AMSA_TT(NAME, 9),  AMSA_TT(NAME, 10), AMSA_TT(NAME, 11), AMSA_TT(NAME, 12), \
   AMSA_TT(NAME, 13), AMSA_TT(NAME, 14)}

const Tile<float> kPortableFloat[][2] = {AMSA_T(portable_float, 1), AMSA_T(portable_float, 2)};
const Tile<int32_t> kPortablePairs[][2] = {AMSA_T(portable_pairs, 1), AMSA_T(portable_pairs, 2)};
#ifdef AMSA_EXACT_X86
// 12 or 28 sums, two reference registers and a broadcast one: all 16 or 31 of 32 registers.
const Tile<float> kAvx2Float[][2] = AMSA_UP_TO_6(avx2_float);
const Tile<int32_t> kAvx2Pairs[][2] = AMSA_UP_TO_6(avx2_pairs);
#ifdef AMSA_EXACT_AVX_VNNI
const Tile<int32_t> kAvxVnni[][2] = AMSA_UP_TO_6(avx_vnni);
#endif
const Tile<float> kAvx512Float[][2] = AMSA_UP_TO_14(avx512_float);
const Tile<int32_t> kAvx512Vnni[][2] = AMSA_UP_TO_14(avx512_vnni);
#endif

bool wanted(ExactPath path, ExactPath asked) { return asked == path || asked == ExactPath::best; }

Kernels<float> kernels(const float*, ExactPath asked) {
#ifdef AMSA_EXACT_X86
  if (wanted(ExactPath::avx512, asked) && __builtin_cpu_supports("avx512f"))
    return {14, 2, kAvx512Float, avx512_add<float>, 1};
  if (wanted(ExactPath::avx2, asked) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {6, 1, kAvx2Float, avx2_add<float>, 1};
#endif
  return {2, 1, kPortableFloat, portable_add<float>, 1};
}

Kernels<int32_t> kernels(const int8_t*, ExactPath asked) {
#ifdef AMSA_EXACT_X86
  if (wanted(ExactPath::avx512, asked) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"))
    return {14, 2, kAvx512Vnni, avx512_add<int32_t>, 4};
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef AMSA_EXACT_AVX_VNNI
  if (wanted(ExactPath::avx_vnni, asked) && avx2 && __builtin_cpu_supports("avxvnni"))
    return {6, 1, kAvxVnni, avx2_add<int32_t>, 4};
#endif
  if (wanted(ExactPath::avx2, asked) && avx2) return {6, 1, kAvx2Pairs, avx2_add<int32_t>, 2};
#endif
  return {2, 1, kPortablePairs, portable_add<int32_t>, 2};
}

// ---- The search

// Positions per tile so that tiles of at most `limit` pixels, a multiple of `quantum`, have the fewest pixels in all.
int tile_size(int count, int limit, int quantum) {
  const int first = ceil_div(count, limit - 2);
  int best = count;
  long least = -1;
  for (int n = first; n < first + 4; ++n) {
    const int size = ceil_div(count, n);
    const long pixels = long(ceil_div(count, size)) * round_up(size + 2, quantum);
    if (least < 0 || pixels < least) {
      least = pixels;
      best = size;
    }
  }
  return best;
}

template <class T, class Acc>
class Search {
 public:
  Search(const ExactGrid& grid, const T* query, const T* ref, const float* inverse_norm, int threads,
         const ExactOptions& options)
      : g_(grid), query_(query), ref_(ref), inverse_norm_(inverse_norm), kernels_(kernels(query, options.path)) {
    steps_ = g_.channels / kernels_.step;
    // An eighth for sums and products, half for the packed reference (which all threads share), an eighth for best scores.
    int query_pixels = kQueryPixels, ref_pixels = kRefPixels;
    while (long(3 * kDiagonals + 1) * query_pixels * ref_pixels * 4 > options.scratch_bytes / 8 && query_pixels > kUnit) {
      query_pixels = std::max(query_pixels / 2, kUnit);
      ref_pixels = std::max(ref_pixels / 2, kUnit);
    }
    query_width_ = tile_size(g_.width, query_pixels, kernels_.rows);
    ref_width_ = tile_size(g_.count_x, ref_pixels, kUnit);
    pitch_ = round_up(ref_width_ + 2, kUnit);
    row_bytes_ = long(pitch_ / kUnit) * steps_ * kUnitBytes;
    const long ref_rows = options.scratch_bytes / 2 / (row_bytes_ + 4 * pitch_) - 2;
    const long query_rows = options.scratch_bytes / 8 / (12 * query_width_);
    ref_height_ = int(std::max(1L, std::min<long>(ref_rows, g_.count_y)));
    ref_height_ = ceil_div(g_.count_y, ceil_div(g_.count_y, ref_height_));
    query_height_ = int(std::max(1L, std::min<long>(std::min<long>(query_rows, kQueryRows), g_.height)));
    query_height_ = ceil_div(g_.height, ceil_div(g_.height, query_height_));
    // No more threads than pieces of work.
    threads_ = std::max(1, std::min(threads, ceil_div(query_height_ + ref_height_ - 1, kDiagonals)));
    packed_ = Buffer<char>(row_bytes_ * (ref_height_ + 2));
    packed_norm_ = Buffer<float>(long(pitch_) * ref_height_);
    bias_ = Buffer<int32_t>(long(query_height_ + 2) * (query_width_ + 2));
    for (int t = 0; t < threads_; ++t) work_.emplace_back(*this);
  }

  void run(int32_t* match, float* score) {
    amsa::Team team(threads_);
    for (int y = 0; y < g_.height; y += query_height_)
      for (int x = 0; x < g_.width; x += query_width_) {
        qy_ = y, qx_ = x;
        qh_ = std::min(query_height_, g_.height - y), qw_ = std::min(query_width_, g_.width - x);
        if (sizeof(T) == 1 && kernels_.step == 4) team.run(qh_ + 2, [this](int row) { weigh_row(row); });
        for (Work& work : work_) {
          std::fill_n(work.score.get(), qh_ * qw_, -FLT_MAX);
          std::fill_n(work.match.get(), 2 * qh_ * qw_, 0);
        }
        for (int v = 0; v < g_.count_y; v += ref_height_)
          for (int u = 0; u < g_.count_x; u += ref_width_) {
            ry_ = v, rx_ = u;
            rh_ = std::min(ref_height_, g_.count_y - v), rw_ = std::min(ref_width_, g_.count_x - u);
            team.run(rh_ + 2, [this](int row) { pack_row(row); });
            const int diagonals = qh_ + rh_ - 1;
            std::atomic<int> next{0};
            team.run(threads_, [this, diagonals, &next](int t) {
              for (int i; (i = next.fetch_add(kDiagonals)) < diagonals;)
                walk(i - (qh_ - 1), std::min(kDiagonals, diagonals - i), work_[t]);
            });
          }
        collect(match, score);
      }
  }

 private:
  struct Work {  // of one thread
    explicit Work(const Search& s)
        : sums(3L * kDiagonals * s.query_width_ * s.pitch_),
          products(long(s.query_width_ + 2) * s.pitch_ + kUnit),  // the last row is read up to two further
          query(s.kernels_.step == 2 ? long(s.query_width_ + 2) * s.g_.channels : 0),
          score(long(s.query_height_) * s.query_width_),
          match(2L * s.query_height_ * s.query_width_) {
      std::fill_n(products.get(), long(s.query_width_ + 2) * s.pitch_ + kUnit, Acc{});
    }
    Buffer<Acc> sums, products;
    Buffer<int16_t> query;
    Buffer<float> score;
    Buffer<int32_t> match;
  };

  void pack_row(int row) {
    const int pixels = rw_ + 2;
    const T* from = ref_ + (long(ry_ + row) * g_.ref_pitch + rx_) * g_.channels;
    char* to = packed_.get() + row * row_bytes_;
    for (int p = 0; p < pixels; p += kUnit, from += long(kUnit) * g_.channels, to += long(steps_) * kUnitBytes) {
      const int valid = std::min(kUnit, pixels - p);
      if constexpr (sizeof(T) == 4)
        pack(from, g_.channels, valid, reinterpret_cast<float*>(to));
      else if (kernels_.step == 2)
        pack_pairs(from, g_.channels, valid, reinterpret_cast<int16_t*>(to));
      else
        pack_bytes(from, g_.channels, valid, reinterpret_cast<uint8_t*>(to));
    }
    if (row >= rh_) return;
    const float* norm = inverse_norm_ + long(ry_ + row) * (g_.ref_pitch - 2) + rx_;
    float* end = std::copy(norm, norm + rw_, packed_norm_.get() + long(row) * pitch_);
    std::fill_n(end, pitch_ - rw_, __builtin_nanf(""));
  }

  const T* query_pixels(int row) const { return query_ + (long(qy_ + row) * g_.query_pitch + qx_) * g_.channels; }

  void weigh_row(int row) {
    const T* from = query_pixels(row);
    for (int p = 0; p < qw_ + 2; ++p) {
      int32_t sum = 0;
      for (int c = 0; c < g_.channels; ++c) sum += int32_t(*from++);
      bias_.get()[long(row) * (query_width_ + 2) + p] = -128 * sum;
    }
  }

  // Query row `row` of the tile as the kernels read it, and the distance of its pixels in bytes.
  const char* query_row(int row, Work& work, long& ld) {
    const T* from = query_pixels(row);
    ld = g_.channels * long(sizeof(T));
    if constexpr (sizeof(T) == 1) {
      if (kernels_.step == 2) {
        std::copy(from, from + long(qw_ + 2) * g_.channels, work.query.get());
        ld *= 2;
        return reinterpret_cast<const char*>(work.query.get());
      }
    }
    return reinterpret_cast<const char*>(from);
  }

  void multiply(const char* query, long ld, const int32_t* bias, const char* ref, Work& work) {
    const int pixels = qw_ + 2, units = ceil_div(rw_ + 2, kUnit), strips = ceil_div(pixels, kernels_.rows);
    const long unit = long(steps_) * kUnitBytes;
    for (int u = 0; u < units; u += kernels_.units) {
      const int n = std::min(kernels_.units, units - u);
      for (int s = 0; s < strips; ++s) {  // of nearly equal height: one of few rows would not keep the multipliers busy
        const int begin = int(long(pixels) * s / strips), end = int(long(pixels) * (s + 1) / strips);
        kernels_.tile[end - begin - 1][n - 1](query + begin * ld, ld, ref + u * unit, unit, steps_,
                                              work.products.get() + long(begin) * pitch_ + u * kUnit, pitch_,
                                              bias + begin);
      }
    }
  }

  // Row pairs (y, y + d) of the tile for `count` diagonals d from `first` on.
  void walk(int first, int count, Work& work) {
    const int last = first + count - 1;
    const long size = long(qw_) * pitch_;
    const int end = std::min(qh_, rh_ - first) + 2;
    for (int y = std::max(0, -last); y < end; ++y) {
      long ld;
      const char* query = query_row(y, work, ld);
      for (int i = 0; i < count; ++i) {
        const int d = first + i, low = std::max(0, -d), high = std::min(qh_, rh_ - d);
        if (y < low || y >= high + 2) continue;
        multiply(query, ld, bias_.get() + long(y) * (query_width_ + 2), packed_.get() + (y + d) * row_bytes_, work);
        Acc* sums = work.sums.get() + 3 * i * size;
        Row<Acc> row{};
        row.product = work.products.get();
        row.sum = sums + y % 3 * size;
        row.width = qw_;
        row.pitch = pitch_;
        row.positions = round_up(rw_, kUnit);
        if (y >= low + 2) {
          row.before = sums + (y + 2) % 3 * size;
          row.before2 = sums + (y + 1) % 3 * size;
          row.inverse_norm = packed_norm_.get() + long(y - 2 + d) * pitch_;
          row.y = ry_ + y - 2 + d;
          row.x = rx_;
        }
        const long at = std::max(0L, long(y - 2) * qw_);
        kernels_.add(row, {work.score.get() + at, work.match.get() + 2 * at});
      }
    }
  }

  void collect(int32_t* match, float* score) {
    for (int y = 0; y < qh_; ++y)
      for (int x = 0; x < qw_; ++x) {
        const long at = long(y) * qw_ + x, to = long(qy_ + y) * g_.width + qx_ + x;
        const Work* best = &work_[0];
        for (const Work& w : work_) {
          const float a = w.score.get()[at], b = best->score.get()[at];
          const int32_t *m = w.match.get() + 2 * at, *n = best->match.get() + 2 * at;
          if (a > b || (a == b && (m[0] < n[0] || (m[0] == n[0] && m[1] < n[1])))) best = &w;
        }
        score[to] = best->score.get()[at];
        std::copy_n(best->match.get() + 2 * at, 2, match + 2 * to);
      }
  }

  const ExactGrid g_;
  const T *query_, *ref_;
  const float* inverse_norm_;
  const Kernels<Acc> kernels_;
  int steps_, threads_;
  int query_height_, query_width_, ref_height_, ref_width_;      // positions of a whole tile
  int pitch_;
  long row_bytes_;
  int qy_ = 0, qx_ = 0, qh_ = 0, qw_ = 0, ry_ = 0, rx_ = 0, rh_ = 0, rw_ = 0;  // the current tiles
  Buffer<char> packed_;                                          // [ref_height + 2][pitch / 16][steps][16][4]
  Buffer<float> packed_norm_;                                    // [ref_height, pitch]
  Buffer<int32_t> bias_;                                         // [query_height + 2, query_width + 2], int8 on VNNI
  std::vector<Work> work_;
};

}  // namespace

namespace amsa {

void exact_search(const ExactGrid& grid, const float* query, const float* ref, const float* inverse_norm, int32_t* match,
                  float* score, int threads, const ExactOptions& options) {
  Search<float, float>(grid, query, ref, inverse_norm, threads, options).run(match, score);
}

void exact_search(const ExactGrid& grid, const int8_t* query, const int8_t* ref, const float* inverse_norm, int32_t* match,
                  float* score, int threads, const ExactOptions& options) {
  Search<int8_t, int32_t>(grid, query, ref, inverse_norm, threads, options).run(match, score);
}

}  // namespace amsa
