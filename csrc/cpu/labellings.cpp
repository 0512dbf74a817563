// Statistics of many labellings of the same samples, on processors with AVX-512: sixteen at a time.
//
// `label_silhouettes` turns sums of distances into silhouettes; what a labelling says of a sample
// is one bit. `label_wins` sorts the scores of each fold with Batcher's network, whose comparisons
// do not depend on the data, so that sixteen columns are sorted as one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512dq")))
#else
#define AVX512
#endif

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kLanes = 16;
constexpr int64_t kRowsInFloat = 32;  // added in float32 before a sum goes on in float64
constexpr int64_t kSums = 5;          // what `label_wins` returns of every labelling
constexpr int32_t kOrder = 0x7e;      // bits of a key that break ties, by the sample's place
constexpr int32_t kLabel = 1;         // bit of a key that holds the label

// Whether labelling r + lane marks sample i.
inline int32_t label(const int32_t* bits, int64_t labels, int64_t i, int64_t r, int64_t lane) {
  return (bits[i / 32 * labels + r + lane] >> (i % 32)) & 1;
}

// silhouette[r] += the silhouettes, within[r] += the sums to class 1, of `rows` samples.
AVX512 void add_silhouettes(const float* to1, const double* row_sum, const int32_t* bits,
                            int64_t first, int64_t rows, int64_t labels, const float* in0,
                            const float* in1, double* silhouette, double* within) {
  for (int64_t r = 0; r < labels; r += kLanes) {
    for (int64_t start = 0; start < rows; start += kRowsInFloat) {
      float score[kLanes] = {}, sum[kLanes] = {};
      for (int64_t i = start; i < std::min(rows, start + kRowsInFloat); ++i) {
        const float total = static_cast<float>(row_sum[i]);
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const float one = to1[i * labels + r + lane];
          const bool member = label(bits, labels, first + i, r, lane);
          // (b - a) / max(a, b) = min(1/q, 1) - min(q, 1) with q = a/b; in class 0 q is b/a.
          const float q = one / (total - one) * (member ? in1[r + lane] : in0[r + lane]);
          const float inverse = 1.0f / q;
          const float toward = (inverse < 1.0f ? inverse : 1.0f) - (q < 1.0f ? q : 1.0f);
          score[lane] += q == q ? (member ? toward : -toward) : 0.0f;  // 0/0: all are alike
          sum[lane] += member ? one : 0.0f;
        }
      }
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        silhouette[r + lane] += score[lane];
        within[r + lane] += sum[lane];
      }
    }
  }
}

AVX512 inline void exchange(int32_t* low, int32_t* high) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int32_t a = low[lane], b = high[lane];
    low[lane] = a < b ? a : b;
    high[lane] = a < b ? b : a;
  }
}

// Batcher's odd-even merge sort of `size` rows of sixteen keys (Knuth, vol. 3, 5.2.2, algorithm M).
AVX512 void sort(int32_t* keys, int64_t size) {
  int64_t bits = 1;  // 2 p = 1 << bits
  for (int64_t p = 1; p < size; p *= 2, ++bits) {
    for (int64_t k = p; k >= 1; k /= 2) {
      for (int64_t j = k & (p - 1); j + k < size; j += 2 * k) {
        const int64_t end = std::min(j + k, size - k);
        for (int64_t i = j; i < end; ++i) {
          if (i >> bits == (i + k) >> bits) {
            exchange(keys + i * kLanes, keys + (i + k) * kLanes);
          }
        }
      }
    }
  }
}

// Adds the wins of one fold, samples begin to end, under sixteen labellings to `sums`.
AVX512 void add_wins(const float* scores, const int32_t* bits, int64_t begin, int64_t end,
                     int64_t labels, int64_t r, int32_t* keys, double* sums) {
  const int64_t size = end - begin;
  int32_t n1[kLanes] = {}, ones[kLanes] = {};
  for (int64_t i = begin; i < end; ++i) {
    const int32_t order =
        static_cast<int32_t>(static_cast<uint32_t>(i) * 2654435769u >> 25) & kOrder;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int32_t bit = label(bits, labels, i, r, lane);
      const int32_t raw = std::bit_cast<int32_t>(scores[i * labels + r + lane]);
      const int32_t sorted = raw ^ ((raw >> 31) & 0x7fffffff);  // integers in the order of floats
      keys[(i - begin) * kLanes + lane] = (sorted & ~(kOrder | kLabel)) | order | bit;
      n1[lane] += bit;
    }
  }
  sort(keys, size);
  double wins[kLanes] = {}, square[kLanes] = {};
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int32_t bit = keys[i * kLanes + lane] & kLabel;
      const int32_t won = bit ? static_cast<int32_t>(i) - ones[lane] : n1[lane] - ones[lane];
      wins[lane] += bit ? won : 0;
      square[lane] += static_cast<double>(won) * won;
      ones[lane] += bit;
    }
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const double pairs = static_cast<double>(n1[lane]) * static_cast<double>(size - n1[lane]);
    const double found[kSums] = {wins[lane], pairs, square[lane],
                                 wins[lane] * static_cast<double>(size),
                                 pairs * static_cast<double>(size)};
    for (int64_t k = 0; k < kSums; ++k) sums[k * labels + r + lane] += found[k];
  }
}

void require_avx512(const char* op) {
  check(loops().name == std::string("avx512"), op, ": this processor has no AVX-512");
}

void label_silhouettes(Tensor to1, Tensor row_sum, Tensor bits, int64_t first, Tensor in0,
                       Tensor in1, Tensor silhouette, Tensor within) {
  require_avx512("label_silhouettes");
  const int64_t M = row_sum.size(0), R = bits.size(1);
  check(bits.scalar_type() == ScalarType::Int && bits.dim() == 2 && bits.is_contiguous() &&
            R % kLanes == 0 && first >= 0 && (first + M + 31) / 32 <= bits.size(0),
        "bits: expected a bit for each of samples ", first, " to ", first + M);
  check(to1.scalar_type() == ScalarType::Float && to1.is_contiguous() && to1.dim() == 2 &&
            to1.size(0) == M && to1.size(1) == R,
        "to1: expected shape [", M, ", ", R, "] float32, contiguous");
  check(row_sum.scalar_type() == ScalarType::Double && row_sum.is_contiguous(),
        "row_sum: expected shape [M] float64, contiguous");
  for (const Tensor& size : {in0, in1}) {
    check(size.scalar_type() == ScalarType::Float && size.is_contiguous() && size.numel() == R,
          "in0, in1: expected shape [", R, "] float32, contiguous");
  }
  for (const Tensor& sum : {silhouette, within}) {
    check(sum.scalar_type() == ScalarType::Double && sum.is_contiguous() && sum.numel() == R,
          "silhouette, within: expected shape [", R, "] float64, contiguous");
  }
  add_silhouettes(to1.const_data_ptr<float>(), row_sum.const_data_ptr<double>(),
                  bits.const_data_ptr<int32_t>(), first, M, R, in0.const_data_ptr<float>(),
                  in1.const_data_ptr<float>(), silhouette.mutable_data_ptr<double>(),
                  within.mutable_data_ptr<double>());
}

Tensor label_wins(Tensor scores, Tensor bits, Tensor ends) {
  require_avx512("label_wins");
  const int64_t N = scores.size(0), R = bits.size(1), F = ends.numel();
  check(bits.scalar_type() == ScalarType::Int && bits.dim() == 2 && bits.is_contiguous() &&
            R % kLanes == 0 && bits.size(0) == (N + 31) / 32,
        "bits: expected shape [", (N + 31) / 32, ", a multiple of ", kLanes, "] int32");
  check(scores.scalar_type() == ScalarType::Float && scores.is_contiguous() && scores.dim() == 2 &&
            scores.size(1) == R,
        "scores: expected shape [N, ", R, "] float32, contiguous");
  check(ends.scalar_type() == ScalarType::Long && ends.dim() == 1 && ends.is_contiguous(),
        "ends: expected shape [F] int64, contiguous");
  const int64_t* end = ends.const_data_ptr<int64_t>();
  int64_t begin = 0, largest = 0;
  for (int64_t f = 0; f < F; begin = end[f++]) {
    check(begin <= end[f] && end[f] <= N, "ends: expected ascending places up to ", N);
    largest = std::max(largest, end[f] - begin);
  }
  Tensor sums = torch::stable::new_zeros(scores, {kSums, R}, ScalarType::Double);
  std::vector<int32_t> keys(largest * kLanes);
  for (int64_t r = 0; r < R; r += kLanes) {
    for (int64_t f = 0; f < F; ++f) {
      add_wins(scores.const_data_ptr<float>(), bits.const_data_ptr<int32_t>(), f ? end[f - 1] : 0,
               end[f], R, r, keys.data(), sums.mutable_data_ptr<double>());
    }
  }
  return sums;
}

}  // namespace

}  // namespace safetyspace::cpu

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CPU, m) {
  m.impl("label_silhouettes", TORCH_BOX(&safetyspace::cpu::label_silhouettes));
  m.impl("label_wins", TORCH_BOX(&safetyspace::cpu::label_wins));
}
