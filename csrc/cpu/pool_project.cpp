// pool_project on the CPU: averages of token ranges, each hidden state read once.
//
// The limits of a sample's ranges cut its tokens into intervals that lie wholly inside or outside
// every range (mean and last token share their tokens). Each interval is read once; up to 128
// tokens are added in float32, eight by eight, and these sums in float64, so that a long text loses
// no more than a short one. One task is one sample and up to 4,096 dimensions, whose sums stay in
// the caches. Tasks share nothing: results are bit-identical for any number of threads.
//
// Bytes: every hidden state inside a range read once, 4 B S D written. Flops: one addition per
// value: memory is the bound.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kTaskWidth = 4096;
constexpr int64_t kNarrowTask = 256;
constexpr int64_t kBlockTokens = 128;
constexpr int64_t kTaskValues = 1 << 15;  // smaller tasks are not worth a thread

Input input_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Input::kFloat32;
    case ScalarType::BFloat16:
      return Input::kBFloat16;
    case ScalarType::Half:
      return Input::kFloat16;
    default:
      check(false, "expected float32, bfloat16 or float16");
      return Input::kFloat32;
  }
}

// Everything that one sample needs, for `width` dimensions from x on.
class Sample {
 public:
  Sample(const int32_t* spans, int64_t num_spans) : spans_(spans), num_spans_(num_spans) {
    limits_.reserve(2 * num_spans);
    for (int64_t i = 0; i < 2 * num_spans; ++i) {
      limits_.push_back(spans[i]);
    }
    std::sort(limits_.begin(), limits_.end());
    limits_.erase(std::unique(limits_.begin(), limits_.end()), limits_.end());
  }

  // out: S rows of `width` values, `out_stride` apart
  void pool(Input type, const void* x, int64_t stride, float* out, int64_t out_stride,
            int64_t width) {
    float block[kTaskWidth];
    const std::unique_ptr<double[]> sums(new double[num_spans_ * width]);
    std::vector<bool> started(num_spans_);
    for (size_t i = 0; i + 1 < limits_.size(); ++i) {
      const int64_t start = limits_[i], stop = limits_[i + 1];
      if (!in_any(start, stop)) continue;
      for (int64_t t = start; t < stop; t += kBlockTokens) {
        std::fill_n(block, width, 0.0f);
        loops().add_rows(type, offset(type, x, t * stride), stride,
                         std::min(kBlockTokens, stop - t), block, width);
        for (int64_t s = 0; s < num_spans_; ++s) {
          if (!in(s, start, stop)) continue;
          loops().add_block(block, !started[s], sums.get() + s * width, width);
          started[s] = true;
        }
      }
    }
    for (int64_t s = 0; s < num_spans_; ++s) {
      float* row = out + s * out_stride;
      if (started[s]) {
        const int64_t count = spans_[2 * s + 1] - spans_[2 * s];
        loops().scale(sums.get() + s * width, 1.0 / count, row, width);
      } else {
        std::fill_n(row, width, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }

 private:
  bool in(int64_t s, int64_t start, int64_t stop) const {
    return spans_[2 * s] <= start && stop <= spans_[2 * s + 1];
  }

  bool in_any(int64_t start, int64_t stop) const {
    for (int64_t s = 0; s < num_spans_; ++s) {
      if (in(s, start, stop)) return true;
    }
    return false;
  }

  const int32_t* spans_;
  int64_t num_spans_;
  std::vector<int64_t> limits_;
};

}  // namespace

void pool_into(Tensor hidden_states, Tensor spans, Tensor out, int64_t /*longest*/) {
  const Input type = input_type(hidden_states);
  check(spans.scalar_type() == ScalarType::Int, "spans: expected int32");
  check(hidden_states.dim() == 3, "hidden_states: expected shape [B, T, D]");
  check(spans.dim() == 3 && spans.size(2) == 2, "spans: expected shape [B, S, 2]");
  const int64_t B = hidden_states.size(0), T = hidden_states.size(1), D = hidden_states.size(2);
  const int64_t S = spans.size(1);
  check(spans.size(0) == B, "spans: expected ", B, " samples, got ", spans.size(0));
  check(out.scalar_type() == ScalarType::Float && out.dim() == 3 && out.size(0) == B &&
            out.size(1) == S && out.size(2) == D && (D < 2 || out.stride(2) == 1),
        "out: expected shape [", B, ", ", S, ", ", D, "] float32 with adjacent dimensions");
  if (hidden_states.stride(2) != 1) hidden_states = torch::stable::contiguous(hidden_states);
  if (!spans.is_contiguous()) spans = torch::stable::contiguous(spans);

  const int32_t* p_spans = spans.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < B * S * 2; ++i) {
    check(p_spans[i] >= 0 && p_spans[i] <= T, "spans: expected values in 0 .. ", T, ", got ",
          p_spans[i]);
  }
  const void* p_hidden = hidden_states.const_data_ptr();
  float* p_out = out.mutable_data_ptr<float>();
  const int64_t stride_b = hidden_states.stride(0), stride_t = hidden_states.stride(1);
  const int64_t out_b = out.stride(0), out_s = out.stride(1);

  // Undivided rows are read fastest; few samples are divided so that every thread has work.
  const int64_t wanted = B ? 4 * torch::stable::get_num_threads() / B : 1;
  const int64_t parts =
      std::max((D + kTaskWidth - 1) / kTaskWidth, std::min<int64_t>(wanted, D / kNarrowTask));
  const int64_t width = parts ? ((D + parts - 1) / parts + 15) / 16 * 16 : 0;
  const int64_t grain = std::max<int64_t>(1, kTaskValues / std::max<int64_t>(1, T * width));
  torch::stable::parallel_for(0, B * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / parts, start = task % parts * width;
      Sample(p_spans + b * S * 2, S)
          .pool(type, offset(type, p_hidden, b * stride_b + start), stride_t,
                p_out + b * out_b + start, out_s, std::clamp<int64_t>(D - start, 0, width));
    }
  });
}

std::tuple<Tensor, Tensor> pool_project(Tensor hidden_states, Tensor spans,
                                        std::optional<Tensor> projection) {
  check(hidden_states.dim() == 3, "hidden_states: expected shape [B, T, D]");
  check(spans.dim() == 3, "spans: expected shape [B, S, 2]");
  Tensor pooled = torch::stable::new_empty(
      hidden_states, {spans.size(0), spans.size(1), hidden_states.size(2)}, ScalarType::Float);
  pool_into(hidden_states, spans, pooled, hidden_states.size(1));
  if (!projection)
    return {pooled, torch::stable::new_empty(pooled, {spans.size(0), spans.size(1), 0})};
  return {pooled, torch::stable::matmul(pooled, *projection)};
}

std::string simd_level() { return loops().name; }

}  // namespace safetyspace::cpu

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CPU, m) {
  m.impl("pool_project", TORCH_BOX(&safetyspace::cpu::pool_project));
  m.impl("pool_into", TORCH_BOX(&safetyspace::cpu::pool_into));
}

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&safetyspace::cpu::simd_level));
}
