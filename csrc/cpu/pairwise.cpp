// pairwise_reduce and pairwise_update on the CPU: one pass over the tiles of the Gram matrix.
//
// |a - b|^2 = |a|^2 + |b|^2 - 2 a.b for centred rows. The products of a tile (up to 1,024 rows and
// 256 columns) are one call of the matrix product that torch carries; while the tile is in the
// second-level cache, its squares become distances, and these go to the sums, minima and maxima of
// their row and, as the matrix is symmetric, of their column. Pairs that are too near for float32
// are computed again from a - b. Rows are sorted by class within units of 256, so that the inner
// loops (loops.inc) see one class at a time.
//
// Work is dealt out tile by tile within a strip of 1,024 rows. What a tile adds to its columns no
// other tile of the strip touches; what it adds to its rows is kept apart and added in the order of
// the columns. Results are therefore bit-identical for any number of threads and any order of
// finishing, and rows may come strip by strip.
//
// For N rows: N^2 D flops (half the matrix), plus 3 % for the diagonal at N = 5,000; about 1.5
// cycles of epilogue a pair. Memory: one strip (4 KiB x D) and one tile (1 KiB x D + 1 MiB) per
// thread, whatever N is.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kStrip = 1024;  // PAIRWISE_BLOCK of reference.py
constexpr int64_t kUnit = 256;
constexpr float kNear = 1.0f / 64;                   // NEAR of reference.py
constexpr int64_t kPartialBytes = int64_t{1} << 24;  // of row results that wait to be added up
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Tensor empty_floats(int64_t n) { return torch::stable::empty({n}, ScalarType::Float); }

// out = a b; a: [m, d], b: [d, n], out: [m, n], with these strides
void multiply(const float* a, int64_t m, int64_t d, const float* b, int64_t n, int64_t b_row,
              int64_t b_col, float* out, int64_t out_row) {
  if (m == 0 || n == 0) return;
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const auto view = [&](const float* data, int64_t rows, int64_t cols, int64_t s0, int64_t s1) {
    return torch::stable::from_blob(const_cast<float*>(data), {rows, cols}, {s0, s1}, cpu,
                                    ScalarType::Float);
  };
  std::array<StableIValue, 3> stack{torch::stable::detail::from(view(a, m, d, d, 1)),
                                    torch::stable::detail::from(view(b, d, n, b_row, b_col)),
                                    torch::stable::detail::from(view(out, m, n, out_row, 1))};
  check(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION) == 0,
        "the matrix product failed");
  torch::stable::detail::to<Tensor>(stack[0]);  // releases the result's handle
}

// One layer of samples as the caller gave them.
struct Samples {
  Input type;
  const void* data;
  int64_t stride, count, D;
  const double* center;
  const int64_t* labels;  // null: one class
  Metric metric;

  const void* row(int64_t i) const { return offset(type, data, i * stride); }
};

// Positions of one class within a unit.
struct Segment {
  int64_t label, begin, end;
};

// Up to kUnit samples, centred and sorted by class.
struct Unit {
  int64_t start, count;
  float* values;               // [count, D]
  std::vector<double> scales;  // 1, or 1 / length
  std::vector<float> norms;    // squared, of the centred values
  std::vector<int64_t> index;  // sample of each position
  std::vector<Segment> segments;

  void pack(const Samples& samples, int64_t first, float* into) {
    start = first;
    count = std::min(kUnit, samples.count - first);
    values = into;
    scales.resize(count);
    norms.resize(count);
    index.resize(count);
    segments.clear();
    std::iota(index.begin(), index.end(), first);
    const auto label = [&](int64_t i) { return samples.labels ? samples.labels[i] : 0; };
    std::stable_sort(index.begin(), index.end(),
                     [&](int64_t i, int64_t j) { return label(i) < label(j); });
    for (int64_t p = 0; p < count; ++p) {
      if (segments.empty() || segments.back().label != label(index[p])) {
        segments.push_back({label(index[p]), p, p});
      }
      segments.back().end = p + 1;
      const void* x = samples.row(index[p]);
      scales[p] = samples.metric == Metric::kCosine
                      ? 1 / std::sqrt(loops().squared_norm(samples.type, x, samples.D))
                      : 1;
      const double norm = loops().center_row(samples.type, x, scales[p], samples.center,
                                             values + p * samples.D, samples.D);
      norms[p] = std::isfinite(norm) ? static_cast<float>(norm) : kNaN;
    }
  }
};

// One layer of results: [rows, C], kernel [rows, C, G].
struct Results {
  double* sum;
  float *min, *max;
  double* kernel;
  int64_t C, G;

  void add(int64_t row, int64_t label, const Extremes& values, const double* kernels) {
    const int64_t at = row * C + label;
    sum[at] += values.sum;
    min[at] = std::min(min[at], values.min);
    max[at] = std::max(max[at], values.max);
    for (int64_t g = 0; g < G; ++g) kernel[at * G + g] += kernels[g];
  }

  // Minimum and maximum ignore NaN, sums keep it.
  void spread_nan(int64_t rows) {
    for (int64_t at = 0; at < rows * C; ++at) {
      if (std::isnan(sum[at])) min[at] = max[at] = kNaN;
    }
  }
};

// Two-class labellings whose sums within class 1 are wanted as well.
struct Labellings {
  const float* masks;  // [N, count], 1 for class 1
  int64_t count;
  float gamma;     // sum exp(-gamma d^2) and not d, unless NaN
  float shift;     // subtracted from every value, so that float32 sums keep what differs
  double* within;  // [count]
};

// What a tile adds to its rows, by position in the strip and segment of the tile's columns.
struct RowPartial {
  int64_t first_row = 0;
  std::vector<Segment> segments;
  std::vector<Extremes> values;
  std::vector<double> kernels;
  std::vector<double> within;
};

// A thread's own memory.
struct Scratch {
  Unit cols;
  Tensor values, gram, products;
  std::vector<double> col_sum, col_kernel;
  std::vector<float> col_min, col_max;
};

class Reduction {
 public:
  // both: rows and columns are the same samples, and results are added to either side of a pair
  Reduction(const Samples& rows, const Samples& cols, bool both, const std::vector<double>& gammas,
            Results results, const Labellings* labellings = nullptr)
      : rows_(rows),
        cols_(cols),
        both_(both),
        gammas_(gammas),
        results_(results),
        labellings_(labellings) {
    const int64_t height = std::min(kStrip, rows.count);
    strip_values_ = empty_floats(height * rows.D);
    scratch_.resize(torch::stable::get_num_threads());
    for (Scratch& scratch : scratch_) {
      scratch.values = empty_floats(kUnit * rows.D);
      scratch.gram = empty_floats(height * kUnit);
      if (labellings) scratch.products = empty_floats(kUnit * labellings->count);
      scratch.col_sum.resize(kUnit);
      scratch.col_min.resize(kUnit);
      scratch.col_max.resize(kUnit);
      scratch.col_kernel.resize(kUnit * gammas.size());
    }
  }

  void add_strip(int64_t start) {
    const int64_t stop = std::min(start + kStrip, rows_.count);
    strip_start_ = start;
    strip_rows_ = stop - start;
    units_.resize((strip_rows_ + kUnit - 1) / kUnit);
    for_each(units_.size(), [&](int64_t u, Scratch&) {
      units_[u].pack(rows_, start + u * kUnit,
                     strip_values_.mutable_data_ptr<float>() + u * kUnit * rows_.D);
    });
    const int64_t num_tiles = ((both_ ? stop : cols_.count) + kUnit - 1) / kUnit;
    const int64_t segments = std::min(kUnit, results_.C);
    const int64_t cell = sizeof(Extremes) + 8 * results_.G;
    const int64_t at_once = std::max<int64_t>(4, kPartialBytes / (strip_rows_ * segments * cell));
    for (int64_t first = 0; first < num_tiles; first += at_once) {
      const int64_t count = std::min(at_once, num_tiles - first);
      if (static_cast<int64_t>(partials_.size()) < count) partials_.resize(count);
      for_each(count, [&](int64_t i, Scratch& scratch) {
        add_tile((first + i) * kUnit, scratch, partials_[i]);
      });
      for_each(units_.size(), [&](int64_t u, Scratch&) {
        for (int64_t i = 0; i < count; ++i) add_partial(units_[u], u * kUnit, partials_[i]);
      });
      for (int64_t i = 0; labellings_ && i < count; ++i) {
        for (int64_t r = 0; r < labellings_->count; ++r) {
          labellings_->within[r] += partials_[i].within[r];
        }
      }
    }
  }

 private:
  // body(i, scratch) for every i, dealt out to the threads one by one
  template <typename Body>
  void for_each(int64_t count, const Body& body) {
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, scratch_.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        for (int64_t i = next++; i < count; i = next++) body(i, scratch_[thread]);
      }
    });
  }

  void add_tile(int64_t col_start, Scratch& scratch, RowPartial& partial) {
    const bool diagonal = both_ && col_start >= strip_start_;
    // On the diagonal the columns are a unit of the strip, and rows above them were its partners.
    const int64_t row_start = diagonal ? col_start - strip_start_ : 0;
    if (!diagonal) {
      scratch.cols.pack(cols_, col_start, scratch.values.mutable_data_ptr<float>());
    }
    const Unit& cols = diagonal ? units_[row_start / kUnit] : scratch.cols;
    const int64_t n = cols.count, m = strip_rows_ - row_start, D = rows_.D;
    const float* a = strip_values_.const_data_ptr<float>() + row_start * D;
    float* gram = scratch.gram.mutable_data_ptr<float>();
    // Of the square on the diagonal only what lies left of it counts: a quarter need not be
    // computed.
    const int64_t half = diagonal ? n / 2 : 0;
    multiply(a, half, D, cols.values, half, 1, D, gram, n);
    multiply(a + half * D, m - half, D, cols.values, n, 1, D, gram + half * n, n);

    const int64_t num_segments = cols.segments.size(), G = results_.G;
    partial.first_row = row_start;
    partial.segments = cols.segments;
    partial.values.assign(m * num_segments, {0, kInf, -kInf});
    partial.kernels.assign(m * num_segments * G, 0);
    for (int64_t u = row_start / kUnit; u < static_cast<int64_t>(units_.size()); ++u) {
      const Unit& rows = units_[u];
      for (const Segment& segment : rows.segments) {
        clear_columns(scratch);
        for (int64_t p = segment.begin; p < segment.end; ++p) {
          const int64_t row = u * kUnit - row_start + p;
          const int64_t width = diagonal && row < n ? row : n;
          add_row(rows, p, cols, width, gram + row * n, scratch,
                  partial.values.data() + row * num_segments,
                  partial.kernels.data() + row * num_segments * G);
        }
        if (both_) flush_columns(cols, segment.label, scratch);
      }
    }
    if (labellings_) add_labellings(cols, row_start, diagonal, gram, scratch, partial.within);
  }

  // Adds sum_pj z[p] gram[p][j] z[j] of every labelling: a product with its columns' masks, and of
  // that the rows in class 1.
  void add_labellings(const Unit& cols, int64_t row_start, bool diagonal, float* gram,
                      Scratch& scratch, std::vector<double>& within) {
    const int64_t n = cols.count, R = labellings_->count;
    const float* col_masks = labellings_->masks + cols.start * R;
    float* products = scratch.products.mutable_data_ptr<float>();
    within.assign(R, 0);
    for (int64_t u = row_start / kUnit; u < static_cast<int64_t>(units_.size()); ++u) {
      float* values = gram + (u * kUnit - row_start) * n;
      for (int64_t p = 0; p < units_[u].count; ++p) {
        const int64_t row = u * kUnit - row_start + p;
        const int64_t width = diagonal && row < n ? row : n;
        loops().shifted(values + p * n, rows_.metric, labellings_->gamma, labellings_->shift,
                        width);
        std::fill(values + p * n + width, values + (p + 1) * n, 0.0f);
      }
      multiply(values, units_[u].count, n, col_masks, R, R, 1, products, R);
      for (int64_t p = 0; p < units_[u].count; ++p) {
        loops().add_masked(labellings_->masks + (units_[u].start + p) * R, products + p * R,
                           within.data(), R);
      }
    }
  }

  void add_row(const Unit& rows, int64_t p, const Unit& cols, int64_t width, float* squared,
               Scratch& scratch, Extremes* values, double* kernels) {
    const float norm = rows.norms[p];
    if (loops().squared_distances(squared, norm, cols.norms.data(), kNear, width)) {
      for (int64_t j = 0; j < width; ++j) {
        if (squared[j] < kNear * (norm + cols.norms[j])) {
          // From the samples themselves: centred values have been rounded to float32.
          squared[j] = static_cast<float>(
              loops().squared_difference(rows_.type, rows_.row(rows.index[p]), rows.scales[p],
                                         cols_.row(cols.index[j]), cols.scales[j], rows_.D));
        }
      }
    }
    const int64_t G = results_.G;
    for (size_t s = 0; s < cols.segments.size(); ++s) {
      const int64_t begin = cols.segments[s].begin;
      const int64_t length = std::min(cols.segments[s].end, width) - begin;
      if (length <= 0) break;
      const Columns columns{scratch.col_sum.data() + begin, scratch.col_min.data() + begin,
                            scratch.col_max.data() + begin};
      loops().reduce(squared + begin, rows_.metric, length, values + s, both_ ? &columns : nullptr);
      for (int64_t g = 0; g < G; ++g) {
        loops().reduce_kernel(squared + begin, static_cast<float>(gammas_[g]), length,
                              kernels + s * G + g,
                              both_ ? scratch.col_kernel.data() + g * kUnit + begin : nullptr);
      }
    }
  }

  void clear_columns(Scratch& scratch) {
    std::fill(scratch.col_sum.begin(), scratch.col_sum.end(), 0);
    std::fill(scratch.col_kernel.begin(), scratch.col_kernel.end(), 0);
    std::fill(scratch.col_min.begin(), scratch.col_min.end(), kInf);
    std::fill(scratch.col_max.begin(), scratch.col_max.end(), -kInf);
  }

  void flush_columns(const Unit& cols, int64_t label, const Scratch& scratch) {
    std::vector<double> kernels(results_.G);
    for (int64_t j = 0; j < cols.count; ++j) {
      for (int64_t g = 0; g < results_.G; ++g) kernels[g] = scratch.col_kernel[g * kUnit + j];
      results_.add(cols.index[j], label,
                   {scratch.col_sum[j], scratch.col_min[j], scratch.col_max[j]}, kernels.data());
    }
  }

  void add_partial(const Unit& rows, int64_t first, const RowPartial& partial) {
    if (first < partial.first_row) return;
    const int64_t num_segments = partial.segments.size();
    for (int64_t p = 0; p < rows.count; ++p) {
      for (int64_t s = 0; s < num_segments; ++s) {
        const int64_t at = (first - partial.first_row + p) * num_segments + s;
        results_.add(rows.index[p], partial.segments[s].label, partial.values[at],
                     partial.kernels.data() + at * results_.G);
      }
    }
  }

  const Samples rows_, cols_;
  const bool both_;
  const std::vector<double>& gammas_;
  Results results_;
  const Labellings* labellings_;
  int64_t strip_start_ = 0, strip_rows_ = 0;
  Tensor strip_values_;
  std::vector<Unit> units_;
  std::vector<RowPartial> partials_;
  std::vector<Scratch> scratch_;
};

Input input_type(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
        "rows: expected float32, bfloat16 or float16");
  return type == ScalarType::Float      ? Input::kFloat32
         : type == ScalarType::BFloat16 ? Input::kBFloat16
                                        : Input::kFloat16;
}

Metric parse_metric(const std::string& name) {
  check(name == "euclidean" || name == "sqeuclidean" || name == "cosine",
        "metric: expected euclidean, sqeuclidean or cosine, got ", name);
  return name == "euclidean" ? Metric::kEuclidean
         : name == "cosine"  ? Metric::kCosine
                             : Metric::kSquaredEuclidean;
}

Tensor last_contiguous(const Tensor& x) {
  check(x.dim() == 3 && x.size(2) > 0, "rows: expected shape [L, N, D] with D > 0");
  return x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

Samples layer_of(const Tensor& x, const Tensor& center, int64_t layer, Metric metric,
                 const int64_t* labels) {
  const Input type = input_type(x);
  const int64_t D = x.size(2);
  return {type, offset(type, x.const_data_ptr(), layer * x.stride(0)), x.stride(1), x.size(1),
          D,    center.const_data_ptr<double>() + layer * D,           labels,      metric};
}

Results results_of(const Tensor& sum, const Tensor& min, const Tensor& max, const Tensor& kernel,
                   int64_t layer) {
  return {sum.mutable_data_ptr<double>() + layer * sum.stride(0),
          min.mutable_data_ptr<float>() + layer * min.stride(0),
          max.mutable_data_ptr<float>() + layer * max.stride(0),
          kernel.mutable_data_ptr<double>() + layer * kernel.stride(0),
          sum.size(2),
          kernel.size(3)};
}

void check_operands(const Tensor& x, const Tensor& center, const Tensor& labels, int64_t classes) {
  check(center.scalar_type() == ScalarType::Double && center.is_contiguous() && center.dim() == 2 &&
            center.size(0) == x.size(0) && center.size(1) == x.size(2),
        "center: expected shape [", x.size(0), ", ", x.size(2), "] float64");
  check(labels.scalar_type() == ScalarType::Long && labels.is_contiguous() && labels.dim() == 1 &&
            labels.size(0) == x.size(1),
        "labels: expected shape [", x.size(1), "] int64");
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.size(0); ++i) {
    check(label[i] >= 0 && label[i] < classes, "labels: expected 0 .. ", classes - 1, ", got ",
          label[i]);
  }
}

void check_result(const char* name, const Tensor& result, ScalarType type,
                  const std::vector<int64_t>& shape) {
  bool good = result.scalar_type() == type && result.dim() == static_cast<int64_t>(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); good && i-- > 0;) {
    good = result.size(i) == shape[i] && (i == 0 || shape[i] <= 1 || result.stride(i) == stride);
    stride *= std::max<int64_t>(1, shape[i]);
  }
  check(good, name, ": not the shape, type or layout of pairwise_reduce's");
}

}  // namespace

void pairwise_update(Tensor x, Tensor center, Tensor labels, int64_t start, std::string metric,
                     std::vector<double> gammas, Tensor sum, Tensor min, Tensor max,
                     Tensor kernel_sum) {
  x = last_contiguous(x);
  const int64_t L = x.size(0), N = x.size(1), G = gammas.size();
  check(sum.dim() == 3, "sum: expected shape [L, N, C]");
  const int64_t C = sum.size(2);
  check_operands(x, center, labels, C);
  check(start >= 0 && start % kStrip == 0, "start: expected a multiple of ", kStrip, ", got ",
        start);
  check_result("sum", sum, ScalarType::Double, {L, N, C});
  check_result("min", min, ScalarType::Float, {L, N, C});
  check_result("max", max, ScalarType::Float, {L, N, C});
  check_result("kernel_sum", kernel_sum, ScalarType::Double, {L, N, C, G});
  const Metric kind = parse_metric(metric);
  for (int64_t layer = 0; layer < L; ++layer) {
    const Samples samples = layer_of(x, center, layer, kind, labels.const_data_ptr<int64_t>());
    Results results = results_of(sum, min, max, kernel_sum, layer);
    Reduction reduction(samples, samples, true, gammas, results);
    for (int64_t strip = start; strip < N; strip += kStrip) reduction.add_strip(strip);
    results.spread_nan(N);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_reduce(Tensor rows, std::optional<Tensor> cols,
                                                           Tensor center, Tensor col_labels,
                                                           int64_t num_classes, std::string metric,
                                                           std::vector<double> gammas) {
  rows = last_contiguous(rows);
  check(num_classes >= 1, "num_classes: expected at least 1, got ", num_classes);
  const int64_t L = rows.size(0), M = rows.size(1), C = num_classes, G = gammas.size();
  Tensor sum = torch::stable::new_zeros(rows, {L, M, C}, ScalarType::Double);
  Tensor min = torch::stable::new_empty(rows, {L, M, C}, ScalarType::Float);
  Tensor max = torch::stable::new_empty(rows, {L, M, C}, ScalarType::Float);
  Tensor kernel_sum = torch::stable::new_zeros(rows, {L, M, C, G}, ScalarType::Double);
  torch::stable::fill_(min, kInf);
  torch::stable::fill_(max, -kInf);
  if (!cols) {
    pairwise_update(rows, center, col_labels, 0, metric, gammas, sum, min, max, kernel_sum);
    return {sum, min, max, kernel_sum};
  }
  const Tensor others = last_contiguous(*cols);
  check(others.scalar_type() == rows.scalar_type() && others.size(0) == L &&
            others.size(2) == rows.size(2),
        "cols: expected the type, layers and dimensions of rows");
  check_operands(others, center, col_labels, C);
  const Metric kind = parse_metric(metric);
  for (int64_t layer = 0; layer < L; ++layer) {
    Results results = results_of(sum, min, max, kernel_sum, layer);
    Reduction reduction(layer_of(rows, center, layer, kind, nullptr),
                        layer_of(others, center, layer, kind, col_labels.const_data_ptr<int64_t>()),
                        false, gammas, results);
    for (int64_t strip = 0; strip < M; strip += kStrip) reduction.add_strip(strip);
    results.spread_nan(M);
  }
  return {sum, min, max, kernel_sum};
}

std::tuple<Tensor, Tensor> pairwise_within(Tensor x, Tensor center, Tensor masks,
                                           std::string metric, std::optional<Tensor> gamma,
                                           Tensor shift) {
  x = last_contiguous(x);
  const int64_t L = x.size(0), N = x.size(1);
  check(masks.scalar_type() == ScalarType::Float && masks.dim() == 2 && masks.size(0) == N &&
            masks.is_contiguous(),
        "masks: expected shape [", N, ", R] float32, contiguous");
  const auto by_layer = [L](const Tensor& values, ScalarType type) {
    return values.scalar_type() == type && values.dim() == 1 && values.size(0) == L &&
           values.is_contiguous();
  };
  check(by_layer(shift, ScalarType::Float), "shift: expected shape [", L, "] float32, contiguous");
  check(!gamma || by_layer(*gamma, ScalarType::Double), "gamma: expected shape [", L,
        "] float64, contiguous");
  const Tensor one_class = torch::stable::new_zeros(x, {N}, ScalarType::Long);
  check_operands(x, center, one_class, 1);
  const int64_t R = masks.size(1), G = gamma.has_value();
  Tensor sum = torch::stable::new_zeros(x, {L, N, 1}, ScalarType::Double);
  Tensor min = torch::stable::new_zeros(x, {L, N, 1}, ScalarType::Float);
  Tensor max = torch::stable::new_zeros(x, {L, N, 1}, ScalarType::Float);
  Tensor kernel_sum = torch::stable::new_zeros(x, {L, N, 1, G}, ScalarType::Double);
  Tensor within = torch::stable::new_zeros(x, {L, R}, ScalarType::Double);
  const Metric kind = parse_metric(metric);
  for (int64_t layer = 0; layer < L; ++layer) {
    std::vector<double> gammas;
    if (gamma) gammas.push_back(gamma->const_data_ptr<double>()[layer]);
    const Labellings labellings{
        masks.const_data_ptr<float>(), R, gamma ? static_cast<float>(gammas[0]) : kNaN,
        shift.const_data_ptr<float>()[layer], within.mutable_data_ptr<double>() + layer * R};
    const Samples samples = layer_of(x, center, layer, kind, nullptr);
    Reduction reduction(samples, samples, true, gammas,
                        results_of(sum, min, max, kernel_sum, layer), &labellings);
    for (int64_t strip = 0; strip < N; strip += kStrip) reduction.add_strip(strip);
  }
  return {torch::stable::view(gamma ? kernel_sum : sum, {L, N}), within};
}

}  // namespace safetyspace::cpu

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CPU, m) {
  m.impl("pairwise_reduce", TORCH_BOX(&safetyspace::cpu::pairwise_reduce));
  m.impl("pairwise_update", TORCH_BOX(&safetyspace::cpu::pairwise_update));
  m.impl("pairwise_within", TORCH_BOX(&safetyspace::cpu::pairwise_within));
}
