// The compiled kernels. Schemas and meaning: safetyspace_fast/ops/_schema.py and reference.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace safetyspace {

using torch::stable::Tensor;

namespace cpu {

// The instruction set that the kernels chose: avx512, avx2 or baseline.
std::string simd_level();

// [B,T,D] f32|bf16|f16, [B,S,2] i32, [D,P] f32 -> pooled [B,S,D] f32, projected [B,S,P] f32
std::tuple<Tensor, Tensor> pool_project(Tensor hidden_states, Tensor spans,
                                        std::optional<Tensor> projection);

// The averages alone, into out [B,S,D] f32 of any strides but the last; `longest` is not used
void pool_into(Tensor hidden_states, Tensor spans, Tensor out, int64_t longest);

// [L,M,D], [L,N,D] or none, [L,D] f64, [N] i64 -> sum [L,M,C] f64, min, max [L,M,C] f32,
// kernel_sum [L,M,C,G] f64
std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_reduce(Tensor rows, std::optional<Tensor> cols,
                                                           Tensor center, Tensor col_labels,
                                                           int64_t num_classes, std::string metric,
                                                           std::vector<double> gammas);

// [L,N,D], [L,D] f64, [N] i64; adds the pairs with a row from `start` on to the four results
void pairwise_update(Tensor x, Tensor center, Tensor labels, int64_t start, std::string metric,
                     std::vector<double> gammas, Tensor sum, Tensor min, Tensor max,
                     Tensor kernel_sum);

// [L,N,D], [L,D] f64, [N,R] f32, [L] f64 or none, [L] f32 -> total [L,N] f64, within [L,R] f64
std::tuple<Tensor, Tensor> pairwise_within(Tensor x, Tensor center, Tensor masks,
                                           std::string metric, std::optional<Tensor> gamma,
                                           Tensor shift);

}  // namespace cpu
}  // namespace safetyspace
