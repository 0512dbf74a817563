// label_sums on processors with AVX-512: products of a matrix with vectors of 0 and 1.
//
// The sixteen sums of any four neighbouring values of a row fit one register. Sixteen labellings
// then take a permutation of it by their four bits and an addition, where a product would take four
// multiply-adds. At most 64 + n/256 additions in float32 follow one another.
//
// The tables of 256 values of four rows (16 KiB) and the bits of 256 values (32 bytes a labelling)
// stay in the first- and second-level cache while all rows are processed.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "../common/check.h"
#include "../ops.h"
#include "loops.h"

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers
#endif
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f")))
#endif

namespace safetyspace::cpu {

namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kRows = 4;
constexpr int64_t kLabels = 64;  // LABELS of ops/_labels.py
constexpr int64_t kWords = 8;    // of 32 values
constexpr int64_t kGroups = 8;   // of 4 values, in a word

#if defined(__x86_64__)

struct alignas(64) Tables {
  float sums[kWords * kGroups][kRows][16];
};

namespace avx512 {

// The sums of every choice of four neighbouring values of a row, which has `width` values left.
AVX512 void fill_tables(const double* values, int64_t width, int64_t row, Tables& tables) {
  for (int64_t g = 0; g < kWords * kGroups; ++g) {
    float four[4];
    for (int64_t i = 0; i < 4; ++i) {
      four[i] = 4 * g + i < width ? static_cast<float>(values[4 * g + i]) : 0.0f;
    }
    const __m512 low = _mm512_add_ps(_mm512_maskz_mov_ps(0xaaaa, _mm512_set1_ps(four[0])),
                                     _mm512_maskz_mov_ps(0xcccc, _mm512_set1_ps(four[1])));
    const __m512 high = _mm512_add_ps(_mm512_maskz_mov_ps(0xf0f0, _mm512_set1_ps(four[2])),
                                      _mm512_maskz_mov_ps(0xff00, _mm512_set1_ps(four[3])));
    _mm512_store_ps(tables.sums[g][row], _mm512_add_ps(low, high));
  }
}

// sums[row][r] += the values of each row that the bits of labelling r mark, for `words` words
AVX512 void add_sums(const Tables& tables, const int32_t* bits, int64_t words, int64_t labels,
                     float* sums) {
  for (int64_t r = 0; r < labels; r += kLabels) {
    __m512 total[kRows][4];
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t v = 0; v < 4; ++v) total[row][v] = _mm512_setzero_ps();
    }
    for (int64_t w = 0; w < words; ++w) {
      __m512i choice[4];
      for (int64_t v = 0; v < 4; ++v) {
        choice[v] = _mm512_loadu_si512(bits + w * labels + r + 16 * v);
      }
      for (int64_t g = 0; g < kGroups; ++g) {
        for (int64_t row = 0; row < kRows; ++row) {
          const __m512 table = _mm512_load_ps(tables.sums[w * kGroups + g][row]);
          for (int64_t v = 0; v < 4; ++v) {
            total[row][v] = _mm512_add_ps(total[row][v], _mm512_permutexvar_ps(choice[v], table));
          }
        }
        for (int64_t v = 0; v < 4; ++v) choice[v] = _mm512_srli_epi32(choice[v], 4);
      }
    }
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t v = 0; v < 4; ++v) {
        float* sum = sums + row * labels + r + 16 * v;
        _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), total[row][v]));
      }
    }
  }
}

}  // namespace avx512

void add_all(const double* values, int64_t rows, int64_t width, const int32_t* bits, int64_t labels,
             float* sums) {
  Tables tables;
  constexpr int64_t block = 32 * kWords;
  for (int64_t start = 0; start < width; start += block) {
    const int64_t words = (std::min(block, width - start) + 31) / 32;
    for (int64_t first = 0; first < rows; first += kRows) {
      for (int64_t row = 0; row < kRows; ++row) {
        const bool there = first + row < rows;
        avx512::fill_tables(values + (there ? (first + row) * width + start : 0),
                            there ? width - start : 0, row, tables);
      }
      avx512::add_sums(tables, bits + start / 32 * labels, words, labels, sums + first * labels);
    }
  }
}

#else

void add_all(const double*, int64_t, int64_t, const int32_t*, int64_t, float*) {}

#endif

Tensor label_sums(Tensor values, Tensor bits) {
  check(loops().name == std::string("avx512"), "label_sums: this processor has no AVX-512");
  check(values.scalar_type() == ScalarType::Double && values.dim() == 2 && values.is_contiguous(),
        "values: expected shape [M, N] float64, contiguous");
  const int64_t M = values.size(0), N = values.size(1);
  check(bits.scalar_type() == ScalarType::Int && bits.dim() == 2 && bits.is_contiguous() &&
            bits.size(0) == (N + 31) / 32 && bits.size(1) % kLabels == 0,
        "bits: expected shape [", (N + 31) / 32, ", a multiple of ", kLabels, "] int32");
  const int64_t R = bits.size(1), height = (M + kRows - 1) / kRows * kRows;
  Tensor sums = torch::stable::new_zeros(values, {height, R}, ScalarType::Float);
  add_all(values.const_data_ptr<double>(), M, N, bits.const_data_ptr<int32_t>(), R,
          sums.mutable_data_ptr<float>());
  return torch::stable::narrow(sums, 0, 0, M);
}

}  // namespace

}  // namespace safetyspace::cpu

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CPU, m) {
  m.impl("label_sums", TORCH_BOX(&safetyspace::cpu::label_sums));
}
