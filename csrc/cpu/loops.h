// The inner loops of the CPU kernels, one set per instruction set, chosen when the program runs.
#pragma once

#include <cstdint>

namespace safetyspace::cpu {

enum class Input { kFloat32, kBFloat16, kFloat16 };

enum class Metric { kEuclidean, kSquaredEuclidean, kCosine };

enum class Activation { kSilu, kGeluTanh };

struct Extremes {
  double sum;
  float min, max;
};

struct Columns {
  double* sum;
  float *min, *max;
};

struct Loops {
  const char* name;

  // sum[k] += x[t][k] for `rows` rows of `width` values, `stride` values apart.
  void (*add_rows)(Input type, const void* x, int64_t stride, int64_t rows, float* sum,
                   int64_t width);

  // sum[k] += block[k], or = where it is the first
  void (*add_block)(const float* block, bool first, double* sum, int64_t width);

  // out[k] = factor * sum[k]
  void (*scale)(const double* sum, double factor, float* out, int64_t width);

  // |x|^2 in float64.
  double (*squared_norm)(Input type, const void* x, int64_t width);

  // out[k] = scale * x[k] - center[k], computed in float64; returns |out|^2.
  double (*center_row)(Input type, const void* x, double scale, const double* center, float* out,
                       int64_t width);

  // |a_scale * a - b_scale * b|^2 in float64.
  double (*squared_difference)(Input type, const void* a, double a_scale, const void* b,
                               double b_scale, int64_t width);

  // gram[j] = max(0, row_norm + col_norms[j] - 2 gram[j]), NaN kept. Returns how many are below
  // near * (row_norm + col_norms[j]), too small to be right.
  int64_t (*squared_distances)(float* gram, float row_norm, const float* col_norms, float near,
                               int64_t width);

  // Adds the distances of one row to the columns of one class to `row` and, if not null, to `cols`.
  void (*reduce)(const float* squared, Metric metric, int64_t width, Extremes* row,
                 const Columns* cols);

  // values[j] = distance - shift, or the kernel exp(-gamma squared) - shift if gamma is not NaN
  void (*shifted)(float* values, Metric metric, float gamma, float shift, int64_t width);

  // sum[r] += mask[r] * values[r]
  void (*add_masked)(const float* mask, const float* values, double* sum, int64_t width);

  // Adds exp(-gamma squared[j]) to *row_sum and, if not null, to col_sum[j].
  void (*reduce_kernel)(const float* squared, float gamma, int64_t width, double* row_sum,
                        double* col_sum);

  // out[j] = activation(gates[j]) * values[j]
  void (*gate)(const float* gates, const float* values, Activation activation, float* out,
               int64_t width);

  // out[k] = weight[k] * x[k] / sqrt(mean(x^2) + epsilon)
  void (*rms_norm)(const float* x, const float* weight, float epsilon, float* out, int64_t width);

  // Turns every pair (x[j], x[j + half]) by its angle, and scales it.
  void (*turn)(const float* x, const float* cos, const float* sin, float scale, float* out,
               int64_t half);

  // values[j] = exp(values[j] - the largest); returns their sum.
  float (*exponentials)(float* values, int64_t width);
};

// The widest set that this processor has; ATEN_CPU_CAPABILITY=default|avx2 lowers it, as it does
// for torch.
const Loops& loops();

inline const void* offset(Input type, const void* x, int64_t values) {
  return static_cast<const char*>(x) + values * (type == Input::kFloat32 ? 4 : 2);
}

}  // namespace safetyspace::cpu
