// PatchMatch's propagation steps: what `propagate` in reference.py defines.
//
// Patches are never unfolded: the three pixels of a patch's row lie side by side, so a score is three runs of a dot product.
// A candidate that was scored before in the step, and the position's own match, are not scored again; with many channels each
// position remembers candidates of earlier steps too, see Memory.

#include "search.hpp"

namespace amsa {
namespace {

constexpr int kRows = 4;  // rows of one piece of work
constexpr uint32_t kNone = UINT32_MAX;
// Bytes of a pixel from which on a position remembers scores. 80x80, 'paper', 6 iterations, float: with 128 channels 0.10 s
// instead of 0.16 s on smooth features and 0.24 instead of 0.27 on noise; with 16 channels 0.09 instead of 0.07.
constexpr long kMemorable = 512;

inline int reflect(int64_t index, int size) {
  const int64_t period = std::max(2 * (int64_t(size) - 1), int64_t(1));
  index = (index < 0 ? -index : index) % period;
  return int(std::min(index, period - index));
}

inline int confine(int64_t index, int count, bool wrap) {
  if (index >= 0 && index < count) return int(index);
  if (!wrap) return index < 0 ? 0 : count - 1;
  const int rest = int(index % count);
  return rest < 0 ? rest + count : rest;
}

// Scores by candidate, a small direct-mapped table for each query position: a match that has settled is offered the same
// candidates in every iteration.
class Memory {
 public:
  static constexpr int kSlots = 32;

  explicit Memory(long positions) : keys_(product(positions, kSlots)), scores_(product(positions, kSlots)) {
    std::fill(keys_.get(), keys_.get() + positions * kSlots, kNone);
  }

  bool find(long position, uint32_t key, float& score) const {
    const long at = slot(position, key);
    if (keys_.get()[at] != key) return false;
    score = scores_.get()[at];
    return true;
  }

  void keep(long position, uint32_t key, float score) {
    const long at = slot(position, key);
    keys_.get()[at] = key;
    scores_.get()[at] = score;
  }

 private:
  static long slot(long position, uint32_t key) { return position * kSlots + (key * 2654435761u >> 27); }

  Buffer<uint32_t> keys_;
  Buffer<float> scores_;
};

// Where the neighbours of every row (or column) lie, reflected at the border.
struct Neighbours {
  std::vector<int> of[3];
  Neighbours(int size, int dilation) {
    for (int tap = 0; tap < 3; ++tap) {
      of[tap].resize(size);
      for (int i = 0; i < size; ++i) of[tap][i] = reflect(i + int64_t(dilation) * (tap - 1), size);
    }
  }
};

struct Matches {
  int32_t* at;   // [positions, 2] (y, x)
  float* score;  // [positions]
};

template <class T>
struct Pass {
  const Grid& g;
  const Tables<T>& t;
  const Step step;
  const bool wrap, first;  // first: there are no scores yet
  const Neighbours& rows;
  const Neighbours& cols;
  Memory* memory;  // or null
  // Of each position, a bit for each dilation: a Ref propagation with it has left the match as it is. It would again, so it is
  // not taken. Null where a step's candidates change from one iteration to the next.
  uint32_t* settled;
  uint32_t bit;  // of this step
};

template <class T, class Dots>
int64_t take_step(const Pass<T>& pass, const Dots dots_of_patches, const Matches& before, const Matches& after, int begin,
                  int end) {
  using Dot = decltype(T() * T());  // float or int
  const Grid& g = pass.g;
  const Step& step = pass.step;
  const long query_pitch = g.query_pitch(), ref_pitch = g.ref_pitch();
  int64_t evaluations = 0;
  for (int r = begin; r < end; ++r)
    for (int c = 0; c < g.width; ++c) {
      const long here = long(r) * g.width + c;
      const int own_y = before.at[2 * here], own_x = before.at[2 * here + 1];
      if (!step.lr && pass.settled != nullptr && (pass.settled[here] & pass.bit) != 0) {
        after.at[2 * here] = own_y;
        after.at[2 * here + 1] = own_x;
        after.score[here] = before.score[here];
        continue;
      }
      const uint32_t own = uint32_t(own_y) * uint32_t(g.count_x) + uint32_t(own_x);
      int ys[kCandidates], xs[kCandidates];
      uint32_t keys[kCandidates];
      float scores[kCandidates];
      int count = 0, open = 0;  // different candidates; those to be scored
      int opened[kCandidates];
      const T* refs[kCandidates];
      int32_t sums[kCandidates];
      for (int k = 0; k < kCandidates; ++k) {
        int y, x;
        if (step.lr) {
          const int row = pass.rows.of[k / 3][r], col = pass.cols.of[k % 3][c];
          const long from = long(row) * g.width + col;
          y = before.at[2 * from];
          x = before.at[2 * from + 1];
          if (step.shifted) {
            y = confine(int64_t(y) - (row - r), g.count_y, false);
            x = confine(int64_t(x) - (col - c), g.count_x, false);
          }
        } else {
          y = confine(int64_t(own_y) + step.dilation * (k / 3 - 1) + step.jitter * kJitterY[k], g.count_y, pass.wrap);
          x = confine(int64_t(own_x) + step.dilation * (k % 3 - 1) + step.jitter * kJitterX[k], g.count_x, pass.wrap);
        }
        const uint32_t key = uint32_t(y) * uint32_t(g.count_x) + uint32_t(x);
        bool seen = false;
        for (int j = 0; j < count; ++j) seen |= keys[j] == key;
        if (seen) continue;  // an equal score never wins over an earlier one
        ys[count] = y;
        xs[count] = x;
        keys[count] = key;
        if (!pass.first && key == own) {
          scores[count] = before.score[here];
        } else if (pass.memory == nullptr || !pass.memory->find(here, key, scores[count])) {
          opened[open] = count;
          refs[open] = pass.t.ref + y * ref_pitch + long(x) * g.channels;
          sums[open] = pass.t.ref_sum != nullptr ? pass.t.ref_sum[key] : 0;
          ++open;
        }
        ++count;
      }
      if (open > 0) {
        Dot dots[kCandidates];
        dots_of_patches(pass.t.query + r * query_pitch + long(c) * g.channels, query_pitch, refs, ref_pitch, g.channels, open,
                        sums, dots);
        for (int k = 0; k < open; ++k) {
          const uint32_t key = keys[opened[k]];
          const float score = score_of(float(dots[k]), pass.t.inverse_norm[key]);
          scores[opened[k]] = score;
          if (pass.memory != nullptr) pass.memory->keep(here, key, score);
        }
        evaluations += open;
      }
      int best = 0;
      for (int k = 1; k < count; ++k)
        if (scores[k] > scores[best]) best = k;
      after.at[2 * here] = ys[best];
      after.at[2 * here + 1] = xs[best];
      after.score[here] = scores[best];
      if (pass.settled != nullptr) {
        if (keys[best] != own)
          pass.settled[here] = 0;
        else if (!step.lr)
          pass.settled[here] |= pass.bit;
      }
    }
  return evaluations;
}

}  // namespace

template <class T>
int64_t propagate(const Grid& grid, const Tables<T>& tables, const std::vector<Step>& path, bool wrap, Team& team,
                  int32_t* match, float* score) {
  const long positions = grid.positions();
  Buffer<int32_t> other_match(product(positions, 2));
  Buffer<float> other_score(positions);
  Matches before{match, score}, after{other_match.get(), other_score.get()};
  std::unique_ptr<Memory> memory;
  if (long(grid.channels) * long(sizeof(T)) >= kMemorable) memory = std::make_unique<Memory>(positions);
  std::vector<uint32_t> settled(wrap ? 0 : positions);  // with `wrap` there is a jitter
  const int strips = (grid.height + kRows - 1) / kRows;
  std::atomic<int64_t> evaluations{0};
  for (const Step& step : path) {
    const Neighbours rows(grid.height, step.dilation), cols(grid.width, step.dilation);
    const uint32_t bit = uint32_t(step.dilation);  // a power of two
    const bool first = &step == &path.front();
    const Pass<T> pass{grid, tables, step, wrap, first, rows, cols, memory.get(), wrap ? nullptr : settled.data(), bit};
    team.run(strips, [&](int i) {
      evaluations += take_step(pass, dots_of(T()), before, after, i * kRows, std::min((i + 1) * kRows, grid.height));
    });
    std::swap(before, after);
  }
  if (before.at != match) {
    std::copy(before.at, before.at + 2 * positions, match);
    std::copy(before.score, before.score + positions, score);
  }
  return evaluations;
}

template int64_t propagate(const Grid&, const Tables<float>&, const std::vector<Step>&, bool, Team&, int32_t*, float*);
template int64_t propagate(const Grid&, const Tables<int8_t>&, const std::vector<Step>&, bool, Team&, int32_t*, float*);

}  // namespace amsa
