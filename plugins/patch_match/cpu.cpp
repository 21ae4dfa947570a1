// PatchMatch's steps on the CPU, float32, channels-last (HWC): what `search` in `reference.py` defines.
//
// Patches are never unfolded: the three pixels of a patch's row lie side by side, so a score is three dot products of 3*C
// floats. A candidate that was scored before in the step, and the position's own match, are not scored again.

#include "../cpu_common.hpp"

using amsa::kLanes;
using amsa::parallel;

namespace {

constexpr int kCandidates = 9;
constexpr int kRows = 4;  // rows of one piece of work
// The published code's jitter directions per tap, as in schedule.py.
constexpr int kJitterY[kCandidates] = {1, 0, 0, 1, 0, -1, 0, 0, -1};
constexpr int kJitterX[kCandidates] = {0, -1, -1, 0, 0, 0, 1, 1, 0};

struct Grid {
  int height, width;          // positions
  int channels;
  int query_pitch, ref_pitch; // pixels of a row, with padding
  int count_y, count_x;       // reference positions that can be matched
  int wrap;
};

struct Step {
  int lr, dilation, jitter, shifted;
};

inline int reflect(int index, int size) {
  const int period = std::max(2 * (size - 1), 1);
  index = (index < 0 ? -index : index) % period;
  return std::min(index, period - index);
}

inline int confine(int index, int count, int wrap) {
  if (!wrap) return std::max(0, std::min(index, count - 1));
  const int rest = index % count;
  return rest < 0 ? rest + count : rest;
}

inline float dot_rows(const float* a, const float* b, long a_pitch, long b_pitch, int n) {
  float lanes[kLanes] = {};
  float rest = 0;
  for (int row = 0; row < 3; ++row, a += a_pitch, b += b_pitch) {
    int k = 0;
    for (; k + kLanes <= n; k += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += a[k + l] * b[k + l];
    for (; k < n; ++k) rest += a[k] * b[k];
  }
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0] + rest;
}

// One step for rows [begin, end): matches and scores of the step before -> those after. `known`: scores before are valid.
AMSA_CLONES void propagate(const Grid& g, const Step& step, const float* query, const float* ref, const float* inverse_norm,
                           const int32_t* before, const float* score_before, bool known, int32_t* after, float* score_after,
                           int begin, int end) {
  const int n = 3 * g.channels, norm_pitch = g.ref_pitch - 2;
  const long q_pitch = long(g.query_pitch) * g.channels, r_pitch = long(g.ref_pitch) * g.channels;
  for (int r = begin; r < end; ++r)
    for (int c = 0; c < g.width; ++c) {
      const long here = long(r) * g.width + c;
      const float* q = query + r * q_pitch + long(c) * g.channels;
      int ys[kCandidates], xs[kCandidates];
      float best = 0;
      int chosen = -1;
      for (int k = 0; k < kCandidates; ++k) {
        const int dy = k / 3 - 1, dx = k % 3 - 1;
        if (step.lr) {
          const int row = reflect(r + step.dilation * dy, g.height), col = reflect(c + step.dilation * dx, g.width);
          const long from = long(row) * g.width + col;
          ys[k] = before[2 * from];
          xs[k] = before[2 * from + 1];
          if (step.shifted) {
            ys[k] = confine(ys[k] - (row - r), g.count_y, 0);
            xs[k] = confine(xs[k] - (col - c), g.count_x, 0);
          }
        } else {
          ys[k] = confine(before[2 * here] + step.dilation * dy + step.jitter * kJitterY[k], g.count_y, g.wrap);
          xs[k] = confine(before[2 * here + 1] + step.dilation * dx + step.jitter * kJitterX[k], g.count_x, g.wrap);
        }
        bool seen = false;
        for (int j = 0; j < k && !seen; ++j) seen = ys[j] == ys[k] && xs[j] == xs[k];
        if (seen) continue;  // an equal score never wins over an earlier one
        float score;
        if (known && ys[k] == before[2 * here] && xs[k] == before[2 * here + 1]) {
          score = score_before[here];
        } else {
          const float* p = ref + ys[k] * r_pitch + long(xs[k]) * g.channels;
          score = dot_rows(q, p, q_pitch, r_pitch, n) * inverse_norm[long(ys[k]) * norm_pitch + xs[k]];
        }
        if (chosen < 0 || score > best) {
          best = score;
          chosen = k;
        }
      }
      after[2 * here] = ys[chosen];
      after[2 * here + 1] = xs[chosen];
      score_after[here] = best;
    }
}

}  // namespace

extern "C" {

// query [height+2, query_pitch, channels], ref [.., ref_pitch, channels] and inverse_norm [.., ref_pitch-2] as `Patches` holds
// them. match [height, width, 2] (y, x) is both the start and the result; score [height, width] the result's.
void amsa_patch_match(const Grid* grid, const Step* steps, int step_count, const float* query, const float* ref,
                      const float* inverse_norm, int32_t* match, float* score, int threads) {
  const Grid g = *grid;
  const long positions = long(g.height) * g.width;
  std::vector<int32_t> other_match(2 * positions);
  std::vector<float> other_score(positions);
  int32_t* from = match;
  int32_t* to = other_match.data();
  float* score_from = score;
  float* score_to = other_score.data();
  const int strips = (g.height + kRows - 1) / kRows;
  for (int s = 0; s < step_count; ++s) {
    const Step step = steps[s];
    parallel(strips, threads, [=](int i) {
      propagate(g, step, query, ref, inverse_norm, from, score_from, s > 0, to, score_to, i * kRows,
                std::min((i + 1) * kRows, g.height));
    });
    std::swap(from, to);
    std::swap(score_from, score_to);
  }
  if (from != match) {
    std::copy(from, from + 2 * positions, match);
    std::copy(score_from, score_from + positions, score);
  }
}
}
