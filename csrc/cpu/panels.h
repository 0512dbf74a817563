// Rows of float32 against panels of 32 columns, [K][32] each, in AVX-512: the inner loop of layers
// and of attention.
//
// It holds 14 rows x 32 columns in 28 registers over 192 values of K, and these sums are added up
// in float32: chains as long as MKL's, hence its rounding. A row's result does not depend on the
// rows around it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers
#endif
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f")))
#endif

namespace safetyspace::cpu {

constexpr int64_t kRows = 14;
constexpr int64_t kPanel = 32;  // PANEL of ops/_linear.py

#if defined(__x86_64__)

namespace avx512 {

constexpr int64_t kChain = 192;
constexpr int64_t kStrideX = kChain + 16;  // not a multiple of the first cache's ways

// out[r][j] = or += sum_k x[r][k] panel[k][j], for kNumRows rows and 32 columns
template <int kNumRows>
AVX512 void multiply(const float* x, const float* panel, int64_t depth, float* out, int64_t stride,
                     bool add) {
  __m512 sum[kNumRows][2];
#pragma GCC unroll 14
  for (int r = 0; r < kNumRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k) {
    const __m512 low = _mm512_loadu_ps(panel + k * kPanel);
    const __m512 high = _mm512_loadu_ps(panel + k * kPanel + 16);
#pragma GCC unroll 14
    for (int r = 0; r < kNumRows; ++r) {
      const __m512 value = _mm512_set1_ps(x[r * kStrideX + k]);
      sum[r][0] = _mm512_fmadd_ps(value, low, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(value, high, sum[r][1]);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < kNumRows; ++r) {
    float* row = out + r * stride;
    if (add) {
      sum[r][0] = _mm512_add_ps(_mm512_loadu_ps(row), sum[r][0]);
      sum[r][1] = _mm512_add_ps(_mm512_loadu_ps(row + 16), sum[r][1]);
    }
    _mm512_storeu_ps(row, sum[r][0]);
    _mm512_storeu_ps(row + 16, sum[r][1]);
  }
}

using Multiply = void (*)(const float*, const float*, int64_t, float*, int64_t, bool);
constexpr Multiply kMultiply[kRows + 1] = {nullptr,      multiply<1>,  multiply<2>,  multiply<3>,
                                           multiply<4>,  multiply<5>,  multiply<6>,  multiply<7>,
                                           multiply<8>,  multiply<9>,  multiply<10>, multiply<11>,
                                           multiply<12>, multiply<13>, multiply<14>};

}  // namespace avx512

// Up to 14 rows of x, `x_stride` apart, against `num_panels` panels: panel(i) is where the i-th
// begins, out(i) where its 32 sums of the first row go; those of the next row are `stride` further.
template <class PanelOf, class OutOf>
void multiply_rows(const float* x, int64_t x_stride, int64_t rows, int64_t K, int64_t num_panels,
                   PanelOf panel, OutOf out, int64_t stride) {
  using namespace avx512;
  alignas(64) float some_x[kRows * kStrideX];
  for (int64_t k = 0; k == 0 || k < K; k += kChain) {
    const int64_t depth = std::min(kChain, K - k);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(some_x + r * kStrideX, x + r * x_stride + k, depth * sizeof(float));
    }
    for (int64_t i = 0; i < num_panels; ++i) {
      kMultiply[rows](some_x, panel(i) + k * kPanel, depth, out(i), stride, k > 0);
    }
  }
}

#else

// Never called: without AVX-512 nothing is packed.
template <class PanelOf, class OutOf>
void multiply_rows(const float*, int64_t, int64_t, int64_t, int64_t, PanelOf, OutOf, int64_t) {}

#endif

}  // namespace safetyspace::cpu
