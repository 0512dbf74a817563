// Statistics of many labellings of the same samples, on processors with AVX-512: sixteen at a time.
//
// `label_silhouettes` turns sums of distances into silhouettes; what a labelling says of a sample
// is one bit. `label_wins` sorts the scores of each fold with Batcher's network, whose comparisons
// do not depend on the data, so that sixteen columns are sorted as one. Scores are rounded to a
// 2^16th of the largest of the fold; those that are then equal are ties, and win half.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers
#endif
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f,avx512dq")))
#endif

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kLanes = 16;
constexpr int64_t kRowsInFloat = 32;  // added in float32 before a sum goes on in float64
constexpr int64_t kSums = 8;          // what `label_wins` returns of every labelling
constexpr int32_t kLabel = 1;         // bit of a key that holds the label
constexpr float kSteps = 65536.0f;    // from 0 to the largest score of a fold

#if defined(__x86_64__)

namespace avx512 {

// Labels of sample i, 0 or 1, under labellings r to r + 15.
AVX512 inline __m512i labels_of(const int32_t* bits, int64_t labels, int64_t i, int64_t r) {
  const __m512i word = _mm512_loadu_si512(bits + i / 32 * labels + r);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int32_t>(i % 32));
  return _mm512_and_si512(_mm512_srl_epi32(word, shift), _mm512_set1_epi32(1));
}

// sums[0..15] += values, in float64
AVX512 inline void add_to(double* sums, __m512 values) {
  const __m256 low = _mm512_castps512_ps256(values), high = _mm512_extractf32x8_ps(values, 1);
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), _mm512_cvtps_pd(low)));
  _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), _mm512_cvtps_pd(high)));
}

// silhouette[r] += the silhouettes, within[r] += the sums to class 1, of `rows` samples.
AVX512 void add_silhouettes(const float* to1, const double* row_sum, const int32_t* bits,
                            int64_t first, int64_t rows, int64_t labels, const float* in0,
                            const float* in1, double* silhouette, double* within) {
  const __m512 unit = _mm512_set1_ps(1.0f);
  for (int64_t r = 0; r < labels; r += kLanes) {
    const __m512 weight0 = _mm512_loadu_ps(in0 + r), weight1 = _mm512_loadu_ps(in1 + r);
    for (int64_t start = 0; start < rows; start += kRowsInFloat) {
      __m512 score = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
      for (int64_t i = start; i < std::min(rows, start + kRowsInFloat); ++i) {
        const __m512 one = _mm512_loadu_ps(to1 + i * labels + r);
        const __m512 total = _mm512_set1_ps(static_cast<float>(row_sum[i]));
        const __m512i bit = labels_of(bits, labels, first + i, r);
        const __mmask16 member = _mm512_test_epi32_mask(bit, bit);
        // (b - a) / max(a, b) = min(1/q, 1) - min(q, 1) with q = a/b; in class 0 q is b/a.
        const __m512 q = _mm512_mul_ps(_mm512_div_ps(one, _mm512_sub_ps(total, one)),
                                       _mm512_mask_blend_ps(member, weight0, weight1));
        const __m512 toward =
            _mm512_sub_ps(_mm512_min_ps(_mm512_div_ps(unit, q), unit), _mm512_min_ps(q, unit));
        const __mmask16 known = _mm512_cmp_ps_mask(q, q, _CMP_ORD_Q);  // 0/0: all are alike
        score = _mm512_mask_add_ps(score, known & member, score, toward);
        score = _mm512_mask_sub_ps(score, known & ~member, score, toward);
        sum = _mm512_mask_add_ps(sum, member, sum, one);
      }
      add_to(silhouette + r, score);
      add_to(within + r, sum);
    }
  }
}

AVX512 inline void exchange(int32_t* low, int32_t* high) {
  const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high);
  _mm512_storeu_si512(low, _mm512_min_epi32(a, b));
  _mm512_storeu_si512(high, _mm512_max_epi32(a, b));
}

// Batcher's odd-even merge sort of `size` rows of sixteen keys (Knuth, vol. 3, 5.2.2, algorithm M).
AVX512 void sort(int32_t* keys, int64_t size) {
  int64_t bits = 1;  // 2 p = 1 << bits
  for (int64_t p = 1; p < size; p *= 2, ++bits) {
    for (int64_t k = p; k >= 1; k /= 2) {
      for (int64_t j = k & (p - 1); j + k < size; j += 2 * k) {
        const int64_t end = std::min(j + k, size - k);
        for (int64_t i = j; i < end; ++i) {
          if (i >> bits == (i + k) >> bits) exchange(keys + i * kLanes, keys + (i + k) * kLanes);
        }
      }
    }
  }
}

// sums[0..15] += texts * wins^power where `mask`, in float64.
template <int power>
AVX512 inline void add_where(double* sums, __mmask16 mask, __m512i texts, __m512i wins) {
  const __m512i kept = _mm512_maskz_mov_epi32(mask, texts);
  for (int half = 0; half < 2; ++half) {
    const __m512d some = _mm512_cvtepi32_pd(half ? _mm512_extracti32x8_epi32(kept, 1)
                                                 : _mm512_castsi512_si256(kept));
    const __m512d won = _mm512_cvtepi32_pd(half ? _mm512_extracti32x8_epi32(wins, 1)
                                                : _mm512_castsi512_si256(wins));
    const __m512d each = power == 2 ? _mm512_mul_pd(won, won) : won;
    double* sum = sums + 8 * half;
    _mm512_storeu_pd(sum, _mm512_fmadd_pd(some, each, _mm512_loadu_pd(sum)));
  }
}

// Adds the wins of one fold, samples begin to end, under sixteen labellings to `sums`.
AVX512 void add_wins(const float* scores, const int32_t* bits, int64_t begin, int64_t end,
                     int64_t labels, int64_t r, int32_t* keys, double* sums) {
  const int64_t size = end - begin;
  const __m512i label = _mm512_set1_epi32(kLabel);
  __m512 largest = _mm512_set1_ps(std::numeric_limits<float>::min());
  for (int64_t i = begin; i < end; ++i) {
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(scores + i * labels + r)));
  }
  const __m512 steps = _mm512_div_ps(_mm512_set1_ps(kSteps), largest);
  __m512i n1 = _mm512_setzero_si512();
  for (int64_t i = begin; i < end; ++i) {
    const __m512i bit = labels_of(bits, labels, i, r);
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + i * labels + r), steps);
    const __m512i rounded = _mm512_slli_epi32(_mm512_cvtps_epi32(score), 1);
    _mm512_storeu_si512(keys + (i - begin) * kLanes, _mm512_or_si512(rounded, bit));
    n1 = _mm512_add_epi32(n1, bit);
  }
  sort(keys, size);
  // Twice the wins: a text of class 1 wins over `below` of class 0 and half of its ties, one of
  // class 0 over the texts of class 1 that are neither below nor, by half, its ties.
  double twice[kLanes] = {}, square1[kLanes] = {}, square0[kLanes] = {};
  __m512i ones = _mm512_setzero_si512(), ones_below = ones, below = ones;
  for (int64_t i = 0; i < size; ++i) {
    const __m512i key = _mm512_loadu_si512(keys + i * kLanes);
    ones = _mm512_add_epi32(ones, _mm512_and_si512(key, label));
    const __m512i zeros = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int32_t>(i + 1)), ones);
    __mmask16 last = 0xffff;  // of its ties
    if (i + 1 < size) {
      const __m512i next = _mm512_loadu_si512(keys + (i + 1) * kLanes);
      last = _mm512_cmpgt_epu32_mask(_mm512_xor_si512(key, next), label);
    }
    const __m512i texts1 = _mm512_sub_epi32(ones, ones_below);
    const __m512i texts0 = _mm512_sub_epi32(zeros, below);
    const __m512i wins1 = _mm512_add_epi32(zeros, below);
    const __m512i wins0 =
        _mm512_sub_epi32(_mm512_slli_epi32(n1, 1), _mm512_add_epi32(ones, ones_below));
    add_where<1>(twice, last, texts1, wins1);
    add_where<2>(square1, last, texts1, wins1);
    add_where<2>(square0, last, texts0, wins0);
    ones_below = _mm512_mask_mov_epi32(ones_below, last, ones);
    below = _mm512_mask_mov_epi32(below, last, zeros);
  }
  int32_t count[kLanes];
  _mm512_storeu_si512(count, n1);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const double one = static_cast<double>(count[lane]), zero = static_cast<double>(size) - one;
    const double wins = twice[lane] / 2, pairs = one * zero;
    const double found[kSums] = {wins,        pairs,      square1[lane] / 4, square0[lane] / 4,
                                 wins * zero, wins * one, pairs * zero,      pairs * one};
    for (int64_t k = 0; k < kSums; ++k) sums[k * labels + r + lane] += found[k];
  }
}

}  // namespace avx512

#else

namespace avx512 {

void add_silhouettes(const float*, const double*, const int32_t*, int64_t, int64_t, int64_t,
                     const float*, const float*, double*, double*) {}
void add_wins(const float*, const int32_t*, int64_t, int64_t, int64_t, int64_t, int32_t*, double*) {
}

}  // namespace avx512

#endif

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
  avx512::add_silhouettes(to1.const_data_ptr<float>(), row_sum.const_data_ptr<double>(),
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
      avx512::add_wins(scores.const_data_ptr<float>(), bits.const_data_ptr<int32_t>(),
                       f ? end[f - 1] : 0, end[f], R, r, keys.data(),
                       sums.mutable_data_ptr<double>());
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
