// PatchMatch on the CPU, whole: from the caller's tensors to matches and relevance, as declared in spec.py.

#include "cpu.hpp"

#include <cmath>
#include <cstring>

#include "exact.hpp"
#include "search.hpp"

namespace amsa {
namespace {

constexpr int64_t kLargestSide = 1 << 24;
constexpr int64_t kMostIterations = 1 << 16;
constexpr int64_t kMostInt8Channels = 1040;  // as INT8_CHANNELS of spec.py

std::string size(int64_t rows, int64_t cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

void require(bool condition, const std::string& otherwise) {
  if (!condition) throw Error("PatchMatch: " + otherwise);
}

void require_one_of(const char* name, const char* value, std::initializer_list<const char*> choices) {
  std::string list;
  for (const char* choice : choices) {
    if (value != nullptr && std::strcmp(value, choice) == 0) return;
    list += (list.empty() ? "'" : ", '") + std::string(choice) + "'";
  }
  require(false, std::string(name) + " is '" + (value ? value : "") + "'; it must be one of " + list);
}

void require_within(const char* name, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high,
          std::string(name) + " is " + std::to_string(value) + "; it must be " + std::to_string(low) + " to " + std::to_string(high));
}

bool is(const char* value, const char* name) { return std::strcmp(value, name) == 0; }

// What of the reference holds picture, from level 0's `valid`, whatever that says.
struct Valid {
  int64_t level0[2];  // within the reference
  int rows_cols[2];   // at this level: at least one patch
  int64_t coarse[2];  // at the next coarser level

  Valid(const AmsaPatchMatch& call, const int32_t* valid) {
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t whole = call.ref_shape[2 + axis];
      level0[axis] = clamp(valid[axis], 1, whole << call.level);
      rows_cols[axis] = int(clamp(level_valid(level0[axis], call.level), 3 - 2 * call.pad, whole));
      coarse[axis] = level_valid(level0[axis], call.level + 1);
    }
  }
};

// The matches to start from, as `hand_over` in reference.py, within the counts: [height, width, 2].
void start(const AmsaPatchMatch& call, const int32_t* init, const Valid& valid, const Grid& g, int32_t* match) {
  const int64_t rows = call.init_shape[2], cols = call.init_shape[3];
  const int counts[2] = {g.count_y, g.count_x};
  const bool finer = call.init_scale == 2, published = is(call.schedule, "published");
  const int64_t corner = 1 - call.pad;  // a centre c has its patch's top-left corner at c - 1
  for (int64_t r = 0; r < g.height; ++r)
    for (int64_t c = 0; c < g.width; ++c) {
      const int64_t at[2] = {finer ? r + corner : r, finer ? c + corner : c};  // with pad 0 the border has no whole patch
      for (int axis = 0; axis < 2; ++axis) {
        const int64_t from = finer ? at[0] / 2 * cols + at[1] / 2 : at[0] * cols + at[1];
        int64_t value = init[axis * rows * cols + from];
        if (finer && published) {
          const float coarse = float(std::max(valid.coarse[axis] - 1, int64_t(1)));
          value = int64_t(std::nearbyint(float(value) * float(counts[axis] - 1) / coarse));
        } else if (finer) {
          value = 2 * value + at[axis] % 2 - corner;
        }
        match[2 * (r * g.width + c) + axis] = int32_t(clamp(value, 0, counts[axis] - 1));
      }
    }
}

template <class T>
int64_t search(const AmsaPatchMatch& call, const Grid& g, const Tables<T>& tables, const Valid& valid, int threads, Team& team,
               int32_t* match, float* score) {
  if (is(call.schedule, "exact")) {
    const ExactGrid grid{g.height, g.width, g.channels, g.width + 2, g.count_x + 2, g.count_y, g.count_x};
    exact_search(grid, tables.query, tables.ref, tables.inverse_norm, match, score, threads);
    return g.positions() * g.count_y * g.count_x;
  }
  const int64_t query[2] = {call.query_shape[2], call.query_shape[3]};
  const auto path = steps(call.schedule, call.iterations, call.level, query, valid.level0);
  return propagate(g, tables, path, is(call.schedule, "published"), team, match, score);
}

// Quantized features of a table.
struct Quantized {
  Buffer<int8_t> table;
  float amplitude = 0;
  Quantized() = default;
  Quantized(const Buffer<float>& values, size_t size, Team& team)
      : amplitude(amsa::amplitude(values.get(), size, team)) {
    table = quantized(values.get(), size, amplitude, team);
  }
};

void run(const AmsaPatchMatch& call) {
  check_attributes(call);
  check_shapes(call);
  const int64_t* q = call.query_shape;
  const int64_t* ref_shape = call.ref_shape;
  const bool int8 = is(call.arithmetic, "int8");
  const int pad = int(call.pad);
  Grid g;
  g.height = int(q[2] - 2 + 2 * pad);
  g.width = int(q[3] - 2 + 2 * pad);
  g.channels = padded(int(q[1]), int8 ? kInt8Channels : kFloatChannels);
  const int threads = call.threads > 0 ? call.threads : default_threads();
  Team team(worthwhile(threads, double(g.positions()) * 9 * kCandidates * g.channels));

  const size_t pixel = call.half ? 2 : 4, query_size = product(q[1], q[2], q[3]) * pixel;
  const size_t ref_size = product(ref_shape[1], ref_shape[2], ref_shape[3]) * pixel;
  const size_t query_table = product(g.height + 2, g.width + 2, g.channels);
  Buffer<float> query;
  Quantized query8;
  Buffer<int32_t> match(product(g.positions(), 2));
  int64_t evaluations = 0;
  for (int64_t b = 0; b < ref_shape[0]; ++b) {
    if (b == 0 || q[0] > 1) {  // a query that all share is prepared once
      const char* data = static_cast<const char*>(call.query) + (q[0] > 1 ? b : 0) * query_size;
      const Picture picture{data, call.half != 0, call.query_channels_last != 0, int(q[1]), int(q[2]), int(q[3])};
      query = padded_table(picture, picture.rows, picture.cols, pad, g.channels, team);
      if (int8) {
        query8 = Quantized(query, query_table, team);
        query = Buffer<float>();
      }
    }
    const Valid valid(call, call.valid + (call.valid_shape[0] > 1 ? 2 * b : 0));
    g.count_y = valid.rows_cols[0] - 2 + 2 * pad;
    g.count_x = valid.rows_cols[1] - 2 + 2 * pad;
    const char* data = static_cast<const char*>(call.ref) + b * ref_size;
    const Picture picture{data,           call.half != 0,    call.ref_channels_last != 0, int(ref_shape[1]), int(ref_shape[2]),
                          int(ref_shape[3])};
    const size_t ref_table = product(g.count_y + 2, g.count_x + 2, g.channels);
    auto ref = padded_table(picture, valid.rows_cols[0], valid.rows_cols[1], pad, g.channels, team);
    const size_t counts = product(g.count_y, g.count_x);
    require(counts <= INT32_MAX, "ref has more than 2^31 - 1 positions");
    Buffer<float> inverse_norm(counts);
    const int64_t init_size = 2 * call.init_shape[2] * call.init_shape[3];
    start(call, call.init + (call.init_shape[0] > 1 ? b * init_size : 0), valid, g, match.get());
    float* score = call.relevance + b * g.positions();
    if (int8) {
      const Quantized ref8(ref, ref_table, team);
      ref = Buffer<float>();
      Buffer<int32_t> ref_sum(counts);
      norms(g, ref8.table.get(), inverse_norm.get(), ref_sum.get(), team);
      const Tables<int8_t> tables{query8.table.get(), ref8.table.get(), inverse_norm.get(), ref_sum.get()};
      evaluations += search(call, g, tables, valid, threads, team, match.get(), score);
      const float unit = query8.amplitude / 127.0f;
      for (long i = 0; i < g.positions(); ++i) score[i] *= unit;
    } else {
      norms(g, ref.get(), inverse_norm.get(), team);
      const Tables<float> tables{query.get(), ref.get(), inverse_norm.get(), nullptr};
      evaluations += search(call, g, tables, valid, threads, team, match.get(), score);
    }
    int32_t* out = call.match + b * 2 * g.positions();
    for (long i = 0; i < g.positions(); ++i) {
      out[i] = match.get()[2 * i];
      out[g.positions() + i] = match.get()[2 * i + 1];
    }
  }
  if (call.evaluations != nullptr) *call.evaluations = evaluations;
}

}  // namespace

void check_attributes(const AmsaPatchMatch& call) {
  require_within("iterations", call.iterations, 1, kMostIterations);
  require_one_of("schedule", call.schedule, {"published", "paper", "fast", "exact"});
  require_within("level", call.level, 0, 3);
  require_within("pad", call.pad, 0, 1);
  require_within("init_scale", call.init_scale, 1, 2);
  require_one_of("arithmetic", call.arithmetic, {"float", "int8"});
}

void check_shapes(const AmsaPatchMatch& call) {
  const int64_t *query = call.query_shape, *ref = call.ref_shape, *valid = call.valid_shape, *init = call.init_shape;
  const int64_t batch = ref[0];
  const auto check = [&](const char* name, const int64_t* shape, int rank, int64_t channels) {
    for (int i = 0; i < rank; ++i)
      require(shape[i] >= 1 && shape[i] <= kLargestSide,
              std::string(name) + " has a side of " + std::to_string(shape[i]) + "; it must be 1 to 16777216");
    require(shape[0] == 1 || shape[0] == batch, std::string(name) + " has batch " + std::to_string(shape[0]) +
                                                    "; it must be 1 or " + std::to_string(batch));
    require(shape[1] == channels, std::string(name) + " has " + std::to_string(shape[1]) + " channels; it must have " +
                                      std::to_string(channels));
  };
  check("ref", ref, 4, ref[1]);
  check("query", query, 4, ref[1]);
  check("valid", valid, 2, 2);
  check("init", init, 4, 2);
  if (is(call.arithmetic, "int8"))
    require(ref[1] <= kMostInt8Channels, "ref has " + std::to_string(ref[1]) + " channels; with int8 arithmetic it may have " +
                                             std::to_string(kMostInt8Channels));
  const bool small = query[2] < 3 || query[3] < 3;
  if (call.pad == 0 && (small || ref[2] < 3 || ref[3] < 3))
    require(false, std::string(small ? "query" : "ref") + " is " + size(small ? query[2] : ref[2], small ? query[3] : ref[3]) +
                       "; without padding both sides must be at least 3");
  const bool finer = call.init_scale == 2;
  require(!finer || (query[2] % 2 == 0 && query[3] % 2 == 0),
          "query is " + size(query[2], query[3]) + "; with a coarser init both sides must be even");
  const int64_t rows = finer ? query[2] / 2 : query[2] - 2 + 2 * call.pad;
  const int64_t cols = finer ? query[3] / 2 : query[3] - 2 + 2 * call.pad;
  require(init[2] == rows && init[3] == cols, "init is " + size(init[2], init[3]) + "; it must be " + size(rows, cols));
}

}  // namespace amsa

const char* amsa_patch_match(const AmsaPatchMatch* call) {
  return amsa::guarded([&] { amsa::run(*call); });
}
