// Plain loops, compiled once per instruction set (loops.inc) so that one file serves every
// processor. Nothing of the standard library may be used inside: the linker would merge its inline
// functions and could keep the AVX-512 copy for everybody.
#include "loops.h"

#include <cstdlib>
#include <cstring>

namespace safetyspace::cpu {

namespace baseline {
constexpr const char* kName = "baseline";
#include "loops.inc"
}  // namespace baseline

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
constexpr const char* kName = "avx2";
#include "loops.inc"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")
#endif
namespace avx512 {
constexpr const char* kName = "avx512";
#include "loops.inc"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const Loops& widest() {
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  const bool below_avx512 = limit && std::strcmp(limit, "avx512") != 0;
  const bool below_avx2 = limit && std::strcmp(limit, "default") == 0;
  __builtin_cpu_init();
  if (!below_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return avx512::kLoops;
  }
  if (!below_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::kLoops;
  }
  return baseline::kLoops;
}

#else

static const Loops& widest() { return baseline::kLoops; }

#endif

const Loops& loops() {
  static const Loops& chosen = widest();
  return chosen;
}

}  // namespace safetyspace::cpu
