// Layers of a model: products with packed weights, gates applied to the sums before they are
// written, and norms.
//
// A library's product copies the weight, in every call, into the order that its inner loop reads.
// For a few hundred rows that is a large part of its time, as the layers of a model evict each
// other's weights from the caches. Here the copy is made once: panels of 32 output features, each
// [K][32] floats.
//
// One task is a few panels, which stay in the second-level cache, and up to 512 rows, multiplied by
// the inner loop of panels.h. Results are bit-identical for any number of threads.
//
// Flops: 2 M N K. Bytes from memory: the weight and x read once, the result written once. Hardware
// prefetching delivers the weight as fast as it is used.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"
#include "panels.h"

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kPanels = 4;              // of a task, at most
constexpr int64_t kTaskValues = 200 << 10;  // of its panels: they stay in the second cache
constexpr int64_t kPartRows = 512;          // of a task, at most
constexpr int64_t kNormValues = 1 << 14;    // fewer are not worth a thread
constexpr int64_t kStrideOut = kPanels * kPanel + 16;

// What is applied to a row of sums before it is written.
struct Finish {
  const float* bias;             // [features], or null
  const Activation* activation;  // of gates, in every other panel; null without gates

  // Panels that make one panel of the result.
  int64_t unit() const { return activation ? 2 : 1; }
};

// Rows [begin, end) of x against the panels [first, last), which hold features below `features`.
void multiply_block(const float* x, int64_t begin, int64_t end, int64_t K, const float* panels,
                    int64_t first, int64_t last, const Finish& finish, float* out,
                    int64_t features) {
  alignas(64) float some_out[kRows * kStrideOut];
  const int64_t unit = finish.unit(), made = (last - first) / unit, column = first / unit * kPanel;
  const int64_t width = std::min(features - column, made * kPanel);
  const auto panel = [&](int64_t i) { return panels + (first + i) * K * kPanel; };
  // the gate, then the values that it gates
  const auto place = [&](int64_t i) { return some_out + (i / unit + i % unit * made) * kPanel; };
  for (int64_t m = begin; m < end; m += kRows) {
    const int64_t rows = std::min(kRows, end - m);
    multiply_rows(x + m * K, K, rows, K, last - first, panel, place, kStrideOut);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = out + (m + r) * features + column;
      const float* sums = some_out + r * kStrideOut;
      if (finish.activation) {
        loops().gate(sums, sums + made * kPanel, *finish.activation, row, width);
      } else {
        for (int64_t j = 0; j < width; ++j) {
          row[j] = finish.bias ? sums[j] + finish.bias[column + j] : sums[j];
        }
      }
    }
  }
}

Tensor multiplied(Tensor x, const Tensor& panels, const Finish& finish, int64_t features) {
  const int64_t K = panels.size(1), rank = x.dim();
  check(x.scalar_type() == ScalarType::Float && rank > 0 && x.size(rank - 1) == K,
        "x: expected shape [..., ", K, "] float32");
  if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  std::vector<int64_t> shape(rank, features);
  int64_t M = 1;
  for (int64_t i = 0; i + 1 < rank; ++i) M *= shape[i] = x.size(i);
  Tensor out = torch::stable::new_empty(x, shape);
  const float *p_x = x.const_data_ptr<float>(), *p_panels = panels.const_data_ptr<float>();
  float* p_out = out.mutable_data_ptr<float>();

  // Threads get equal numbers of tasks, which differ by at most one panel or gate. If there are
  // fewer panels than threads, threads share the rows.
  const int64_t threads = torch::stable::get_num_threads(), blocks = (M + kRows - 1) / kRows;
  const int64_t unit = finish.unit(), units = panels.size(0) / unit;
  const int64_t fitting =
      std::clamp<int64_t>(kTaskValues / std::max<int64_t>(1, K * kPanel), 2, kPanels) / unit;
  int64_t groups = (units + fitting - 1) / fitting, parts = (M + kPartRows - 1) / kPartRows;
  if (units < threads) {
    parts = std::min(blocks, std::max(parts, threads));
  } else {
    groups = (groups + threads - 1) / threads * threads;
  }
  torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / groups, group = task % groups;
      multiply_block(p_x, blocks * part / parts * kRows,
                     std::min(M, blocks * (part + 1) / parts * kRows), K, p_panels,
                     units * group / groups * unit, units * (group + 1) / groups * unit, finish,
                     p_out, features);
    }
  });
  return out;
}

void check_panels(const Tensor& panels, int64_t number) {
  check(loops().name == std::string("avx512"), "linear: this processor has no AVX-512");
  check(panels.scalar_type() == ScalarType::Float && panels.dim() == 3 && panels.is_contiguous() &&
            panels.size(2) == kPanel && panels.size(0) == number,
        "panels: expected ", number, " of what pack_linear or pack_gated makes");
}

}  // namespace

Tensor linear(Tensor x, Tensor panels, std::optional<Tensor> bias, int64_t features) {
  check_panels(panels, (features + kPanel - 1) / kPanel);
  check(!bias || (bias->scalar_type() == ScalarType::Float && bias->dim() == 1 &&
                  bias->size(0) == features && bias->is_contiguous()),
        "bias: expected shape [", features, "] float32");
  return multiplied(x, panels, {bias ? bias->const_data_ptr<float>() : nullptr, nullptr}, features);
}

Tensor gated_linear(Tensor x, Tensor panels, int64_t features, std::string activation) {
  check_panels(panels, (features + kPanel - 1) / kPanel * 2);
  check(activation == "silu" || activation == "gelu_tanh",
        "activation: expected silu or gelu_tanh, got ", activation);
  const Activation kind = activation == "silu" ? Activation::kSilu : Activation::kGeluTanh;
  return multiplied(x, panels, {nullptr, &kind}, features);
}

Tensor rms_norm(Tensor x, Tensor weight, double epsilon) {
  const int64_t rank = x.dim(), width = weight.dim() == 1 ? weight.size(0) : -1;
  check(weight.scalar_type() == ScalarType::Float && width > 0 && weight.is_contiguous(),
        "weight: expected shape [D] float32");
  check(x.scalar_type() == ScalarType::Float && rank > 0 && x.size(rank - 1) == width,
        "x: expected shape [..., ", width, "] float32");
  if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  std::vector<int64_t> shape(rank);
  for (int64_t i = 0; i < rank; ++i) shape[i] = x.size(i);
  Tensor out = torch::stable::new_empty(x, shape);
  const int64_t M = x.numel() / width;
  const float *p_x = x.const_data_ptr<float>(), *p_weight = weight.const_data_ptr<float>();
  float* p_out = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(
      0, M, std::max<int64_t>(1, kNormValues / width), [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
          loops().rms_norm(p_x + m * width, p_weight, static_cast<float>(epsilon),
                           p_out + m * width, width);
        }
      });
  return out;
}

}  // namespace safetyspace::cpu

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CPU, m) {
  m.impl("linear", TORCH_BOX(&safetyspace::cpu::linear));
  m.impl("gated_linear", TORCH_BOX(&safetyspace::cpu::gated_linear));
  m.impl("rms_norm", TORCH_BOX(&safetyspace::cpu::rms_norm));
}
