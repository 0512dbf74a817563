// The inner loops of the CPU kernels, one set per instruction set, chosen when the program runs.
#pragma once

#include <cstdint>

namespace safetyspace::cpu {

enum class Input { kFloat32, kBFloat16, kFloat16 };

struct Loops {
  const char* name;

  // sum[k] += x[t][k] for `rows` rows of `width` values, `stride` values apart.
  void (*add_rows)(Input type, const void* x, int64_t stride, int64_t rows, float* sum,
                   int64_t width);
};

// The widest set that this processor has; ATEN_CPU_CAPABILITY=default|avx2 lowers it, as it does
// for torch.
const Loops& loops();

inline const void* offset(Input type, const void* x, int64_t values) {
  return static_cast<const char*>(x) + values * (type == Input::kFloat32 ? 4 : 2);
}

}  // namespace safetyspace::cpu
