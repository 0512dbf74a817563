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

// [B,T,D] f32|bf16|f16, [B,S,2] i32, [D,P] f32 -> pooled [B,S,D] f32, projected [B,S,P] f32
std::tuple<Tensor, Tensor> pool_project(Tensor hidden_states, Tensor spans,
                                        std::optional<Tensor> projection);

}  // namespace cpu
}  // namespace safetyspace
