// Causal attention with rotary positions, from the product of queries, keys and values to the mixed
// values, in one pass; in several steps, a dozen tensors would be written and read.
//
// One task is one sample and one head of keys and values, with all query heads that share it (or
// one of them, if there are few tasks). Keys are rotated into panels of 32 tokens [dim][32], values
// copied into panels of 32 dimensions [T][32]. Queries are multiplied with both, 14 rows at a time,
// by the inner loop of panels.h. All scores of 14 queries are kept, so softmax needs no rescaling.
// Keys and values of tokens before every sample (a shared prefix) may be given. Results are
// bit-identical for any number of threads.
//
// Flops: 2 T^2 dim per query head (half of the square). Bytes: qkv read once, the result written
// once; the panels stay in the caches up to a few thousand tokens.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"
#include "panels.h"

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kLanes = 16;
constexpr int64_t kTasksPerThread = 4;  // if there are fewer, each query head is a task

struct Attention {
  const float *qkv, *cos, *sin;
  const float *q_norm, *k_norm;          // weights, or null
  const float *past_keys, *past_values;  // of P tokens before every sample
  float* out;
  int64_t P, T, dim, num_heads, num_kv_heads;
  int64_t sample_angles;  // from a sample's angles to the next one's: 0 where all have the same
  float epsilon, scaling;

  const float* token(int64_t b, int64_t t) const {
    return qkv + (b * T + t) * (num_heads + 2 * num_kv_heads) * dim;
  }
};

int64_t panels_for(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// The room that tasks need, one after the other.
class Worker {
 public:
  explicit Worker(const Attention& a)
      : a_(a),
        S_(a.P + a.T),
        score_stride_(panels_for(S_) * kPanel + 16),
        mixed_stride_(panels_for(a.dim) * kPanel + 16),
        keys_(new float[panels_for(S_) * a.dim * kPanel]()),
        values_(new float[panels_for(a.dim) * S_ * kPanel]()),
        queries_(new float[kRows * a.dim]),
        normed_(new float[a.dim]),
        turned_(new float[a.dim]),
        scores_(new float[kRows * score_stride_]),
        mixed_(new float[kRows * mixed_stride_]) {}

  // Query heads [first, last) of a sample, which share the keys and values of `kv`.
  void attend(int64_t b, int64_t kv, int64_t first, int64_t last) {
    load(b, kv);
    const int64_t heads = last - first, num_rows = a_.T * heads;
    int64_t token[kRows], head[kRows];
    for (int64_t begin = 0; begin < num_rows; begin += kRows) {
      const int64_t rows = std::min(kRows, num_rows - begin);
      for (int64_t r = 0; r < rows; ++r) {
        token[r] = (begin + r) / heads;
        head[r] = first + (begin + r) % heads;
        turn(a_.token(b, token[r]) + head[r] * a_.dim, a_.q_norm, b, token[r], a_.scaling,
             queries_.get() + r * a_.dim);
      }
      const int64_t seen = a_.P + token[rows - 1] + 1,
                    width = (seen + kLanes - 1) / kLanes * kLanes;
      multiply_rows(
          queries_.get(), a_.dim, rows, a_.dim, panels_for(seen),
          [&](int64_t i) { return keys_.get() + i * a_.dim * kPanel; },
          [&](int64_t i) { return scores_.get() + i * kPanel; }, score_stride_);
      float factor[kRows];
      for (int64_t r = 0; r < rows; ++r) {
        float* row = scores_.get() + r * score_stride_;
        std::fill(row + a_.P + token[r] + 1, row + width, -std::numeric_limits<float>::infinity());
        factor[r] = 1.0f / loops().exponentials(row, width);
      }
      multiply_rows(
          scores_.get(), score_stride_, rows, seen, panels_for(a_.dim),
          [&](int64_t i) { return values_.get() + i * S_ * kPanel; },
          [&](int64_t i) { return mixed_.get() + i * kPanel; }, mixed_stride_);
      for (int64_t r = 0; r < rows; ++r) {
        const float* mixed = mixed_.get() + r * mixed_stride_;
        float* row = a_.out + ((b * a_.T + token[r]) * a_.num_heads + head[r]) * a_.dim;
        for (int64_t j = 0; j < a_.dim; ++j) row[j] = mixed[j] * factor[r];
      }
    }
  }

 private:
  void load(int64_t b, int64_t kv) {
    for (int64_t p = 0; p < a_.P; ++p) {
      const int64_t from = (kv * a_.P + p) * a_.dim;
      put(p, a_.past_keys + from, a_.past_values + from);
    }
    for (int64_t t = 0; t < a_.T; ++t) {
      const float* key = a_.token(b, t) + (a_.num_heads + kv) * a_.dim;
      turn(key, a_.k_norm, b, t, 1.0f, turned_.get());
      put(a_.P + t, turned_.get(), key + a_.num_kv_heads * a_.dim);
    }
  }

  void put(int64_t s, const float* key, const float* value) {
    float* column = keys_.get() + s / kPanel * a_.dim * kPanel + s % kPanel;
    for (int64_t j = 0; j < a_.dim; ++j) column[j * kPanel] = key[j];
    for (int64_t j = 0; j < a_.dim; j += kPanel) {
      std::copy_n(value + j, std::min(kPanel, a_.dim - j), values_.get() + j * S_ + s * kPanel);
    }
  }

  // out = scale * x, normed if there is a norm, rotated by its position
  void turn(const float* x, const float* norm, int64_t b, int64_t t, float scale, float* out) {
    if (norm) {
      loops().rms_norm(x, norm, a_.epsilon, normed_.get(), a_.dim);
      x = normed_.get();
    }
    const int64_t angles = b * a_.sample_angles + t * a_.dim;
    loops().turn(x, a_.cos + angles, a_.sin + angles, scale, out, a_.dim / 2);
  }

  const Attention& a_;
  const int64_t S_, score_stride_, mixed_stride_;  // S: tokens with those before
  const std::unique_ptr<float[]> keys_, values_, queries_, normed_, turned_, scores_, mixed_;
};

const float* norm_weight(const std::optional<Tensor>& weight, int64_t dim, const char* name) {
  if (!weight) return nullptr;
  check(weight->scalar_type() == ScalarType::Float && weight->dim() == 1 &&
            weight->size(0) == dim && weight->is_contiguous(),
        name, ": expected shape [", dim, "] float32");
  return weight->const_data_ptr<float>();
}

}  // namespace

Tensor rotary_attention(Tensor qkv, Tensor cos, Tensor sin, int64_t num_heads, int64_t num_kv_heads,
                        double scaling, std::optional<Tensor> q_norm, std::optional<Tensor> k_norm,
                        double epsilon, std::optional<Tensor> past_keys,
                        std::optional<Tensor> past_values) {
  check(loops().name == std::string("avx512"), "rotary_attention: this processor has no AVX-512");
  check(num_kv_heads > 0 && num_heads > 0 && num_heads % num_kv_heads == 0,
        "num_heads: expected a multiple of num_kv_heads, got ", num_heads, " and ", num_kv_heads);
  check(qkv.scalar_type() == ScalarType::Float && qkv.dim() == 3,
        "qkv: expected shape [B, T, (num_heads + 2 num_kv_heads) dim] float32");
  const int64_t B = qkv.size(0), T = qkv.size(1), all_heads = num_heads + 2 * num_kv_heads;
  const int64_t dim = qkv.size(2) / all_heads;
  check(dim > 0 && dim % 2 == 0 && qkv.size(2) == dim * all_heads,
        "qkv: expected an even number of values for each of ", all_heads, " heads, got ",
        qkv.size(2));
  for (const Tensor* angles : {&cos, &sin}) {
    check(angles->scalar_type() == ScalarType::Float && angles->dim() == 3 &&
              (angles->size(0) == 1 || angles->size(0) == B) && angles->size(1) == T &&
              angles->size(2) == dim && angles->size(0) == cos.size(0),
          "cos, sin: expected shape [1 or ", B, ", ", T, ", ", dim, "] float32");
  }
  const float* p_q_norm = norm_weight(q_norm, dim, "q_norm");
  const float* p_k_norm = norm_weight(k_norm, dim, "k_norm");
  check(past_keys.has_value() == past_values.has_value(), "past_values: missing, or past_keys are");
  for (const std::optional<Tensor>* past : {&past_keys, &past_values}) {
    check(!*past || ((*past)->scalar_type() == ScalarType::Float && (*past)->dim() == 3 &&
                     (*past)->size(0) == num_kv_heads && (*past)->size(2) == dim &&
                     (*past)->size(1) == past_keys->size(1) && (*past)->is_contiguous()),
          "past_keys, past_values: expected shape [", num_kv_heads, ", P, ", dim, "] float32");
  }
  if (!qkv.is_contiguous()) qkv = torch::stable::contiguous(qkv);
  if (!cos.is_contiguous()) cos = torch::stable::contiguous(cos);
  if (!sin.is_contiguous()) sin = torch::stable::contiguous(sin);
  Tensor out = torch::stable::new_empty(qkv, {B, T, num_heads * dim});
  const Attention attention{qkv.const_data_ptr<float>(),
                            cos.const_data_ptr<float>(),
                            sin.const_data_ptr<float>(),
                            p_q_norm,
                            p_k_norm,
                            past_keys ? past_keys->const_data_ptr<float>() : nullptr,
                            past_values ? past_values->const_data_ptr<float>() : nullptr,
                            out.mutable_data_ptr<float>(),
                            past_keys ? past_keys->size(1) : 0,
                            T,
                            dim,
                            num_heads,
                            num_kv_heads,
                            cos.size(0) == 1 ? 0 : T * dim,
                            static_cast<float>(epsilon),
                            static_cast<float>(scaling)};
  const bool few = B * num_kv_heads < kTasksPerThread * torch::stable::get_num_threads();
  const int64_t groups = few ? num_heads : num_kv_heads, heads = num_heads / groups;
  torch::stable::parallel_for(0, T ? B * groups : 0, 1, [&](int64_t begin, int64_t end) {
    Worker worker(attention);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % groups;
      worker.attend(task / groups, group * num_kv_heads / groups, group * heads,
                    (group + 1) * heads);
    }
  });
  return out;
}

}  // namespace safetyspace::cpu

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CPU, m) {
  m.impl("rotary_attention", TORCH_BOX(&safetyspace::cpu::rotary_attention));
}
