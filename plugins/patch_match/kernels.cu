// PatchMatch in CUDA, channels-last (HWC), float16, float32 and int8: what `reference.py` defines. One node is one level.
//
// A warp serves a query position. Patches are read straight from the features, never unfolded: the query's stays in registers for
// all nine candidates, a candidate's comes in 16-byte loads. Sums are float32 (int8: int32). Matches are double-buffered, so a
// step reads only what the step before wrote; the first one makes its matches out of `init` itself.

#include "../kernel.cuh"

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / amsa::kWarp;
constexpr int kCandidates = 9;
constexpr float kLowest = -3.402823466e38f;
constexpr float kLeast = 1e-30f;  // int8: features that stay below count as zero
// The published code's jitter of each candidate, as in schedule.py; two bits each, plus one.
constexpr unsigned kJitterY = 0b00'01'01'00'01'10'01'01'10u, kJitterX = 0b01'10'10'01'01'01'00'00'01u;

enum Schedule { kPublished, kPaper, kFast };

struct alignas(8) Position {
  int row, col;
};

__device__ inline bool operator==(Position a, Position b) { return a.row == b.row && a.col == b.col; }

struct MatchParams {
  const void* query;    // [1|n, query_rows, query_cols, c] T
  const void* ref;      // [n, ref_rows, ref_cols, c] T
  const int* valid;     // [1|n, 2]
  const int* init;      // [1|n, 2, init_rows, init_cols]
  int* match;           // [n, 2, height, width]
  float* relevance;     // [n, 1, height, width]
  float* energy;        // [n, ref_rows, ref_cols]: of a pixel (int8: int)
  float* inverse_norm;  // [n, ref_rows, ref_cols]: of a position's patch
  Position* field_from;  // [n, height, width], the matches, and their scores: the step's input ..
  float* score_from;
  Position* field_to;  // .. and output
  float* score_to;
  unsigned* settled;    // [n, height, width]: bit t: a Ref propagation with dilation 2^t has left the match as it is
  unsigned* largest;    // int8: [n, 2], bits of the largest magnitude of query and ref
  void* query_int8;     // int8: [n, query_rows, query_cols, c_int8]
  void* ref_int8;       // int8: [n, ref_rows, ref_cols, c_int8]
  int query_shared, valid_shared, init_shared;  // 1: one for the whole batch
  int c, c_int8, query_rows, query_cols, ref_rows, ref_cols, height, width, init_rows, init_cols;
  int level, pad, init_scale, schedule;
  int lr, turn, iteration;  // the step: its dilation is 2^turn
  int first, last;          // 1: matches come from init; 1: go to match and relevance
};

// ------------------------------------------------------------------------------------------------------------- sizes

struct Size {
  int rows, cols;
};

__device__ inline int ceil_shift(int n, int shift) { return int((n + (1LL << shift) - 1) >> shift); }

// Level 0's rows and columns that are picture.
__device__ inline Size confined_valid(const MatchParams& p, int image) {
  const int* valid = p.valid + (p.valid_shared ? 0 : 2 * image);
  return {int(min(max((long long)__ldg(valid), 1LL), (long long)p.ref_rows << p.level)),
          int(min(max((long long)__ldg(valid + 1), 1LL), (long long)p.ref_cols << p.level))};
}

// This level's.
__device__ inline Size inside(const MatchParams& p, int image) {
  const Size size = confined_valid(p, image);
  return {max(ceil_shift(size.rows, p.level), 3 - 2 * p.pad), max(ceil_shift(size.cols, p.level), 3 - 2 * p.pad)};
}

// How many positions can be matched.
__device__ inline Size count(const MatchParams& p, Size inside) {
  return {inside.rows - 2 + 2 * p.pad, inside.cols - 2 + 2 * p.pad};
}

__device__ inline int published_reach(Size size) {
  int reach = 0;
  for (int n = (min(size.rows, size.cols) - 3) / 8; n > 0; n >>= 1) ++reach;
  return max(reach, 1);
}

__device__ inline int reflect(int index, int size) {
  const int period = max(2 * (size - 1), 1);
  index = abs(index) % period;
  return min(index, period - index);
}

__device__ inline int confine(int index, int count) { return max(0, min(index, count - 1)); }

__device__ inline int wrap(int index, int count) {
  const int rest = index % count;
  return rest < 0 ? rest + count : rest;
}

// -------------------------------------------------------------------------------------------------------- preparation

template <class T>
__device__ inline float square_sum(const amsa::Vector<T>& v) {
  float x[amsa::Vector<T>::kSize], sum = 0;
  amsa::unpack(v, x);
#pragma unroll
  for (int k = 0; k < amsa::Vector<T>::kSize; ++k) sum = fmaf(x[k], x[k], sum);
  return sum;
}

// Four lanes of int8 a word.
__device__ inline int dot(const uint4& a, const uint4& b, int sum) {
  sum = __dp4a(int(a.x), int(b.x), sum);
  sum = __dp4a(int(a.y), int(b.y), sum);
  sum = __dp4a(int(a.z), int(b.z), sum);
  return __dp4a(int(a.w), int(b.w), sum);
}

__device__ inline int square_sum(const amsa::Vector<int8_t>& v) { return dot(v.bits, v.bits, 0); }

template <class S>
__device__ inline S warp_sum(S value) {
#pragma unroll
  for (int other = amsa::kWarp / 2; other > 0; other /= 2) value += __shfl_xor_sync(amsa::kAllLanes, value, other);
  return value;
}

// Energy of every pixel; zero beyond the picture. A warp a pixel.
template <class T, class S, bool kWhole>
__device__ inline void energy(const MatchParams& p, const T* ref, int c, S* out) {
  const int lane = threadIdx.x % amsa::kWarp, pixel = blockIdx.x * kWarps + threadIdx.x / amsa::kWarp, image = blockIdx.y;
  const int pixels = p.ref_rows * p.ref_cols;
  if (pixel >= pixels) return;
  const Size size = inside(p, image);
  S sum = 0;
  if (pixel / p.ref_cols < size.rows && pixel % p.ref_cols < size.cols) {
    const T* from = ref + ((long long)image * pixels + pixel) * c;
    if constexpr (kWhole) {
      constexpr int kSize = amsa::Vector<T>::kSize;
      for (int k = lane * kSize; k < c; k += amsa::kWarp * kSize) sum += square_sum(amsa::load(from + k));
    } else {
      for (int k = lane; k < c; k += amsa::kWarp) {
        const float value = amsa::to_float(__ldg(from + k));
        sum = fmaf(value, value, sum);
      }
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) out[(long long)image * pixels + pixel] = sum;
}

// One over the norm of every position's patch. A thread a position.
template <class S>
__device__ inline void inverse_norm(const MatchParams& p, const S* energy, S least) {
  const int index = blockIdx.x * kThreads + threadIdx.x, image = blockIdx.y;
  const int pixels = p.ref_rows * p.ref_cols;
  if (index >= pixels) return;
  S sum = 0;
  for (int tap = 0; tap < kCandidates; ++tap) {
    const int row = index / p.ref_cols - p.pad + tap / 3, col = index % p.ref_cols - p.pad + tap % 3;
    if (row >= 0 && row < p.ref_rows && col >= 0 && col < p.ref_cols)
      sum += __ldg(energy + (long long)image * pixels + row * p.ref_cols + col);
  }
  // max of integers and of floats; a sum that is not a number must stay one
  const S norm = sum < least ? least : sum;
  p.inverse_norm[(long long)image * pixels + index] = __fdiv_rn(1.0f, __fsqrt_rn(float(norm)));
}

// ------------------------------------------------------------------------------------------------------- quantization

template <class T>
__device__ inline float finite(T value) {
  const float x = amsa::to_float(value);
  return fabsf(x) <= -kLowest ? x : 0.0f;
}

// The largest magnitude of query (blockIdx.z 0) and ref (1). Bits of floats that are not negative order as the floats do.
template <class T>
__device__ inline void largest(const MatchParams& p) {
  const bool is_ref = blockIdx.z == 1;
  const int image = blockIdx.y, rows = is_ref ? p.ref_rows : p.query_rows, cols = is_ref ? p.ref_cols : p.query_cols;
  const Size size = is_ref ? inside(p, image) : Size{rows, cols};
  const int pixels = rows * cols;
  const T* from = static_cast<const T*>(is_ref ? p.ref : p.query) + (!is_ref && p.query_shared ? 0LL : image) * pixels * p.c;
  float found = 0;
  const long long values = (long long)pixels * p.c;
  for (long long i = (long long)blockIdx.x * kThreads + threadIdx.x; i < values; i += (long long)gridDim.x * kThreads) {
    const int pixel = int(i / p.c);
    if (pixel / cols < size.rows && pixel % cols < size.cols) found = fmaxf(found, fabsf(finite(__ldg(from + i))));
  }
#pragma unroll
  for (int other = amsa::kWarp / 2; other > 0; other /= 2)
    found = fmaxf(found, __shfl_xor_sync(amsa::kAllLanes, found, other));
  if (threadIdx.x % amsa::kWarp == 0) atomicMax(p.largest + 2 * image + is_ref, __float_as_uint(found));
}

__device__ inline float largest_of(const MatchParams& p, int image, int which) {
  const float found = __uint_as_float(p.largest[2 * image + which]);
  return found < kLeast ? 0.0f : found;
}

// Whole numbers from -127 to 127, channels padded with zeros to c_int8.
template <class T>
__device__ inline void quantize(const MatchParams& p) {
  const bool is_ref = blockIdx.z == 1;
  const int image = blockIdx.y, pixels = is_ref ? p.ref_rows * p.ref_cols : p.query_rows * p.query_cols;
  const float found = largest_of(p, image, is_ref), scale = found > 0 ? __fdiv_rn(127.0f, found) : 0.0f;
  const T* from = static_cast<const T*>(is_ref ? p.ref : p.query) + (!is_ref && p.query_shared ? 0LL : image) * pixels * p.c;
  int8_t* to = static_cast<int8_t*>(is_ref ? p.ref_int8 : p.query_int8) + (long long)image * pixels * p.c_int8;
  const long long values = (long long)pixels * p.c_int8;
  for (long long i = (long long)blockIdx.x * kThreads + threadIdx.x; i < values; i += (long long)gridDim.x * kThreads) {
    const int channel = int(i % p.c_int8);
    const float x = channel < p.c ? __fmul_rn(finite(__ldg(from + i / p.c_int8 * p.c + channel)), scale) : 0.0f;
    to[i] = int8_t(min(max(__float2int_rn(x), -127), 127));
  }
}

// --------------------------------------------------------------------------------------------------------- candidates

// The match of a position before the step.
__device__ inline Position match_before(const MatchParams& p, int image, int row, int col, Size count) {
  if (!p.first) {
    const int2 match = __ldg(reinterpret_cast<const int2*>(p.field_from) + ((long long)image * p.height + row) * p.width + col);
    return {match.x, match.y};
  }
  const int halve = p.init_scale == 2;
  // With pad 0 a corner r is the patch centred at r + 1.
  const int centre_row = row + halve * (1 - p.pad), centre_col = col + halve * (1 - p.pad);
  const int* init = p.init + (p.init_shared ? 0LL : image) * 2 * p.init_rows * p.init_cols;
  const int at = (centre_row >> halve) * p.init_cols + (centre_col >> halve);
  long long y = __ldg(init + at), x = __ldg(init + p.init_rows * p.init_cols + at);
  if (halve && p.schedule == kPublished) {
    const Size size = confined_valid(p, image);
    const int coarse_rows = max(ceil_shift(size.rows, p.level + 1) - 1, 1);
    const int coarse_cols = max(ceil_shift(size.cols, p.level + 1) - 1, 1);
    y = (long long)rintf(__fdiv_rn(__fmul_rn(float(y), float(count.rows - 1)), float(coarse_rows)));
    x = (long long)rintf(__fdiv_rn(__fmul_rn(float(x), float(count.cols - 1)), float(coarse_cols)));
  } else if (halve) {
    y = 2 * y + centre_row % 2 - (1 - p.pad);
    x = 2 * x + centre_col % 2 - (1 - p.pad);
  }
  return {int(min(max(y, 0LL), count.rows - 1LL)), int(min(max(x, 0LL), count.cols - 1LL))};
}

// Candidate k of a position whose own match is `own`.
__device__ inline Position candidate(const MatchParams& p, int image, int row, int col, Position own, int k, Size count) {
  const int dilation = 1 << p.turn, dy = dilation * (k / 3 - 1), dx = dilation * (k % 3 - 1);
  if (p.lr) {
    const int from_row = reflect(row + dy, p.height), from_col = reflect(col + dx, p.width);
    const Position match = match_before(p, image, from_row, from_col, count);
    if (p.schedule != kFast) return match;
    return {confine(match.row - (from_row - row), count.rows), confine(match.col - (from_col - col), count.cols)};
  }
  if (p.schedule != kPublished) return {confine(own.row + dy, count.rows), confine(own.col + dx, count.cols)};
  const int jitter = p.iteration % dilation;
  return {wrap(own.row + dy + jitter * (int(kJitterY >> 2 * k & 3u) - 1), count.rows),
          wrap(own.col + dx + jitter * (int(kJitterX >> 2 * k & 3u) - 1), count.cols)};
}

// ------------------------------------------------------------------------------------------------------------- scores

template <class T>
__device__ inline float dot(const amsa::Vector<T>& a, const amsa::Vector<T>& b, float sum) {
  constexpr int kSize = amsa::Vector<T>::kSize;
  float x[kSize], y[kSize];
  amsa::unpack(a, x);
  amsa::unpack(b, y);
#pragma unroll
  for (int k = 0; k < kSize; ++k) sum = fmaf(x[k], y[k], sum);
  return sum;
}

__device__ inline int dot(const amsa::Vector<int8_t>& a, const amsa::Vector<int8_t>& b, int sum) { return dot(a.bits, b.bits, sum); }

template <class T>
__device__ inline amsa::Vector<T> nothing() {
  amsa::Vector<T> v;
  v.bits = make_uint4(0, 0, 0, 0);
  return v;
}

__device__ inline float finish(float sum, float inverse_norm) {
  const float score = __fmul_rn(sum, inverse_norm);
  return score > kLowest ? score : kLowest;  // what is not a number counts as the lowest
}

// What a scorer needs to know: the features of this image, and which query position it scores.
template <class T>
struct Pair {
  const T *query, *ref;
  const float* inverse_norm;
  Size inside;
  int row, col, c;
};

// Scores a query position's patch against others. A lane takes the vectors lane, lane + 32, .. of a patch's 9 * C / kSize, and holds
// the query's, kRounds of them, in registers.
template <class T, class S, int kRounds>
struct Scorer {
  static constexpr int kSize = amsa::Vector<T>::kSize;
  const MatchParams& p;
  const Pair<T>& pair;
  amsa::Vector<T> held[kRounds];
  unsigned tap_rows, tap_cols;  // of each vector, two bits; row 3: there is no such vector
  int first, skip;              // values from a patch's first pixel to the lane's vector; and between its rows

  __device__ Scorer(const MatchParams& params, const Pair<T>& of, int lane)
      : p(params), pair(of), tap_rows(0), tap_cols(0), first(lane * kSize), skip((params.ref_cols - 3) * of.c) {
    const int per_tap = pair.c / kSize;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int vector = lane + round * amsa::kWarp, tap = min(vector / per_tap, kCandidates), channel = vector % per_tap * kSize;
      const int tap_row = tap / 3, tap_col = tap % 3;
      tap_rows |= unsigned(tap_row) << 2 * round;
      tap_cols |= unsigned(tap_col) << 2 * round;
      const int y = pair.row - p.pad + tap_row, x = pair.col - p.pad + tap_col;
      const bool exists = tap < kCandidates && y >= 0 && y < p.query_rows && x >= 0 && x < p.query_cols;
      held[round] = exists ? amsa::load(pair.query + ((long long)y * p.query_cols + x) * pair.c + channel) : nothing<T>();
    }
  }

  __device__ float operator()(Position match) const {
    const int top = match.row - p.pad, left = match.col - p.pad;
    const T* from = pair.ref + ((long long)top * p.ref_cols + left) * pair.c;
    const bool whole = top >= 0 && left >= 0 && top + 2 < pair.inside.rows && left + 2 < pair.inside.cols;
    S sum = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int tap_row = tap_rows >> 2 * round & 3u, y = top + tap_row, x = left + int(tap_cols >> 2 * round & 3u);
      const bool exists = tap_row < 3 && (whole || (y >= 0 && y < pair.inside.rows && x >= 0 && x < pair.inside.cols));
      // The three pixels of a patch's row lie side by side: vectors follow each other but for the gap between rows.
      const int offset = first + round * amsa::kWarp * kSize + tap_row * skip;
      sum = dot(held[round], exists ? amsa::load(from + offset) : nothing<T>(), sum);
    }
    return finish(float(warp_sum(sum)), __ldg(pair.inverse_norm + match.row * p.ref_cols + match.col));
  }
};

// The same for more channels than registers hold, and, with kSize 1, for channels that are no whole vectors.
template <class T, class S, int kSize>
struct LongScorer {
  const MatchParams& p;
  const Pair<T>& pair;
  int lane;

  __device__ float operator()(Position match) const {
    const int per_tap = pair.c / kSize;
    S sum = 0;
    for (int vector = lane; vector < kCandidates * per_tap; vector += amsa::kWarp) {
      const int tap = vector / per_tap, channel = vector % per_tap * kSize;
      const int query_y = pair.row - p.pad + tap / 3, query_x = pair.col - p.pad + tap % 3;
      const int y = match.row - p.pad + tap / 3, x = match.col - p.pad + tap % 3;
      if (query_y < 0 || query_y >= p.query_rows || query_x < 0 || query_x >= p.query_cols) continue;
      if (y < 0 || y >= pair.inside.rows || x < 0 || x >= pair.inside.cols) continue;
      const T* query = pair.query + ((long long)query_y * p.query_cols + query_x) * pair.c + channel;
      const T* ref = pair.ref + ((long long)y * p.ref_cols + x) * pair.c + channel;
      if constexpr (kSize > 1)
        sum = dot(amsa::load(query), amsa::load(ref), sum);
      else
        sum = fmaf(amsa::to_float(__ldg(query)), amsa::to_float(__ldg(ref)), sum);
    }
    return finish(float(warp_sum(sum)), __ldg(pair.inverse_norm + match.row * p.ref_cols + match.col));
  }
};

// --------------------------------------------------------------------------------------------------------------- step

// One propagation of one position, by a warp. `unit` turns a score into the float score.
template <class Score>
__device__ inline void propagate(const MatchParams& p, int image, int row, int col, Size count, float unit, const Score& scorer) {
  const int lane = threadIdx.x % amsa::kWarp;
  const long long here = ((long long)image * p.height + row) * p.width + col;
  const Position own = match_before(p, image, row, col, count);
  const float own_score = p.first ? kLowest : __ldg(p.score_from + here);
  // A Ref propagation that was taken from this match before, and left it, would leave it again.
  unsigned settled = !p.first && lane == 0 ? p.settled[here] : 0;
  settled = __shfl_sync(amsa::kAllLanes, settled, 0);
  // A published one beyond the reach of the valid size is not taken: the plan knows the features' size only.
  const bool skip = !p.lr && (p.schedule == kPublished ? p.turn >= published_reach(confined_valid(p, image)) : settled >> p.turn & 1u);
  Position chosen = own;
  float best = own_score;
  if (!skip) {
    // Lane k finds candidate k, and whether one before it is the same: an equal score never wins over an earlier one.
    const Position mine = candidate(p, image, row, col, own, min(lane, kCandidates - 1), count);
    bool repeated = lane >= kCandidates;
#pragma unroll
    for (int k = 0; k < kCandidates - 1; ++k) {
      const Position other = {__shfl_sync(amsa::kAllLanes, mine.row, k), __shfl_sync(amsa::kAllLanes, mine.col, k)};
      repeated |= k < lane && other == mine;
    }
    bool any = false;
    for (unsigned fresh = __ballot_sync(amsa::kAllLanes, !repeated); fresh != 0; fresh &= fresh - 1) {
      const int k = __ffs(int(fresh)) - 1;
      const Position match = {__shfl_sync(amsa::kAllLanes, mine.row, k), __shfl_sync(amsa::kAllLanes, mine.col, k)};
      const float score = !p.first && match == own ? own_score : scorer(match);
      if (!any || score > best) {
        best = score;
        chosen = match;
        any = true;
      }
    }
    if (!(chosen == own))
      settled = 0;
    else if (!p.lr)
      settled |= 1u << p.turn;
  }
  if (lane != 0) return;
  p.settled[here] = settled;
  p.field_to[here] = chosen;
  p.score_to[here] = best;
  if (!p.last) return;
  const long long positions = (long long)p.height * p.width, at = (long long)row * p.width + col;
  p.match[2 * image * positions + at] = chosen.row;
  p.match[(2 * image + 1) * positions + at] = chosen.col;
  p.relevance[image * positions + at] = __fmul_rn(best, unit);
}

// kRounds: of `Scorer`; 0: more than it holds; -1: channels that are no whole vectors.
template <class T, class S, int kRounds>
__device__ inline void step(const MatchParams& p, const void* query, const void* ref, int query_shared, int c, float unit) {
  const int lane = threadIdx.x % amsa::kWarp, image = blockIdx.y;
  const int position = blockIdx.x * kWarps + threadIdx.x / amsa::kWarp;
  if (position >= p.height * p.width) return;
  const int row = position / p.width, col = position % p.width;
  const long long query_size = (long long)p.query_rows * p.query_cols * c, ref_size = (long long)p.ref_rows * p.ref_cols * c;
  const Size size = inside(p, image);
  const Pair<T> pair{static_cast<const T*>(query) + (query_shared ? 0 : image) * query_size,
                     static_cast<const T*>(ref) + image * ref_size,
                     p.inverse_norm + (long long)image * p.ref_rows * p.ref_cols,
                     size, row, col, c};
  if constexpr (kRounds > 0)
    propagate(p, image, row, col, count(p, size), unit, Scorer<T, S, kRounds>(p, pair, lane));
  else
    propagate(p, image, row, col, count(p, size), unit, LongScorer<T, S, kRounds == 0 ? amsa::Vector<T>::kSize : 1>{p, pair, lane});
}

template <class T, int kRounds>
__device__ inline void step_of_floats(const MatchParams& p) {
  step<T, float, kRounds>(p, p.query, p.ref, p.query_shared, p.c, 1.0f);
}

template <int kRounds>
__device__ inline void step_of_int8(const MatchParams& p) {
  const float unit = __fdiv_rn(largest_of(p, blockIdx.y, 0), 127.0f);
  step<int8_t, int, kRounds>(p, p.query_int8, p.ref_int8, 0, p.c_int8, unit);
}

}  // namespace

AMSA_KERNEL(patch_match_energy_f16, MatchParams, kThreads) {
  energy<__half, float, true>(p, static_cast<const __half*>(p.ref), p.c, p.energy);
}
AMSA_KERNEL(patch_match_energy_f32, MatchParams, kThreads) {
  energy<float, float, true>(p, static_cast<const float*>(p.ref), p.c, p.energy);
}
AMSA_KERNEL(patch_match_energy_f16_any, MatchParams, kThreads) {
  energy<__half, float, false>(p, static_cast<const __half*>(p.ref), p.c, p.energy);
}
AMSA_KERNEL(patch_match_energy_f32_any, MatchParams, kThreads) {
  energy<float, float, false>(p, static_cast<const float*>(p.ref), p.c, p.energy);
}
AMSA_KERNEL(patch_match_energy_int8, MatchParams, kThreads) {
  energy<int8_t, int, true>(p, static_cast<const int8_t*>(p.ref_int8), p.c_int8, reinterpret_cast<int*>(p.energy));
}

AMSA_KERNEL(patch_match_norm, MatchParams, kThreads) { inverse_norm<float>(p, p.energy, 1e-24f); }
AMSA_KERNEL(patch_match_norm_int8, MatchParams, kThreads) { inverse_norm<int>(p, reinterpret_cast<const int*>(p.energy), 1); }

AMSA_KERNEL(patch_match_clear, MatchParams, 32) {
  if (threadIdx.x < 2) p.largest[2 * blockIdx.y + threadIdx.x] = 0;
}
AMSA_KERNEL(patch_match_largest_f16, MatchParams, kThreads) { largest<__half>(p); }
AMSA_KERNEL(patch_match_largest_f32, MatchParams, kThreads) { largest<float>(p); }
AMSA_KERNEL(patch_match_quantize_f16, MatchParams, kThreads) { quantize<__half>(p); }
AMSA_KERNEL(patch_match_quantize_f32, MatchParams, kThreads) { quantize<float>(p); }

// The number is that of vectors a lane holds, at least 9 * C * size / (32 * 16 bytes); 0: any.
AMSA_KERNEL(patch_match_step_f16_1, MatchParams, kThreads) { step_of_floats<__half, 1>(p); }
AMSA_KERNEL(patch_match_step_f16_3, MatchParams, kThreads) { step_of_floats<__half, 3>(p); }
AMSA_KERNEL(patch_match_step_f16_9, MatchParams, kThreads) { step_of_floats<__half, 9>(p); }
AMSA_KERNEL(patch_match_step_f16_0, MatchParams, kThreads) { step_of_floats<__half, 0>(p); }
AMSA_KERNEL(patch_match_step_f16_any, MatchParams, kThreads) { step_of_floats<__half, -1>(p); }
AMSA_KERNEL(patch_match_step_f32_3, MatchParams, kThreads) { step_of_floats<float, 3>(p); }
AMSA_KERNEL(patch_match_step_f32_9, MatchParams, kThreads) { step_of_floats<float, 9>(p); }
AMSA_KERNEL(patch_match_step_f32_0, MatchParams, kThreads) { step_of_floats<float, 0>(p); }
AMSA_KERNEL(patch_match_step_f32_any, MatchParams, kThreads) { step_of_floats<float, -1>(p); }
AMSA_KERNEL(patch_match_step_int8_1, MatchParams, kThreads) { step_of_int8<1>(p); }
AMSA_KERNEL(patch_match_step_int8_5, MatchParams, kThreads) { step_of_int8<5>(p); }
AMSA_KERNEL(patch_match_step_int8_0, MatchParams, kThreads) { step_of_int8<0>(p); }
