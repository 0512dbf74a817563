// pool_project on CUDA: checks, memory, one launch on the current stream; the kernel is in the
// header.
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../common/check.h"
#include "pool_project.cuh"

namespace safetyspace::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

unsigned span_groups(int64_t S) { return static_cast<unsigned>((S + kMostSpans - 1) / kMostSpans); }

template <typename Input, int kSpans, bool kAligned>
__global__ void __launch_bounds__(kThreads, kSpans == kFewSpans ? 2 : 1)
    pool_project_kernel(const PoolArguments arguments) {
  __shared__ float shared[kSharedFloats<kSpans>];
  pool_project_block<Input, kSpans, kAligned>(arguments, shared);
}

template <typename Input, int kSpans>
void launch(const PoolArguments& a, cudaStream_t stream) {
  constexpr int64_t n = kValues<Input>;
  const bool aligned = reinterpret_cast<uintptr_t>(a.hidden_states) % 16 == 0 && a.stride_d == 1 &&
                       a.D % n == 0 && a.stride_b % n == 0 && a.stride_t % n == 0;
  const int64_t num_blocks = (a.B + kSamples - 1) / kSamples * ((a.D + kWidth - 1) / kWidth);
  check(num_blocks <= INT32_MAX, "hidden_states: too many samples for one launch: ", a.B);
  const auto kernel = aligned ? pool_project_kernel<Input, kSpans, true>
                              : pool_project_kernel<Input, kSpans, false>;
  const dim3 grid(static_cast<unsigned>(num_blocks), span_groups(a.S));
  kernel<<<grid, kThreads, 0, stream>>>(a);
}

template <typename Input>
void launch(const PoolArguments& a, cudaStream_t stream) {
  a.S <= kFewSpans ? launch<Input, kFewSpans>(a, stream) : launch<Input, kMostSpans>(a, stream);
}

void check_cuda(cudaError_t error) { check(error == cudaSuccess, cudaGetErrorString(error)); }

std::tuple<Tensor, Tensor> pool_project(Tensor hidden_states, Tensor spans,
                                        std::optional<Tensor> projection) {
  check(spans.scalar_type() == ScalarType::Int, "spans: expected int32");
  check(hidden_states.dim() == 3, "hidden_states: expected shape [B, T, D]");
  check(spans.dim() == 3 && spans.size(2) == 2, "spans: expected shape [B, S, 2]");
  const int64_t B = hidden_states.size(0), T = hidden_states.size(1), D = hidden_states.size(2);
  const int64_t S = spans.size(1);
  check(spans.size(0) == B, "spans: expected ", B, " samples, got ", spans.size(0));
  check(T < (1 << 30), "hidden_states: expected fewer than 2^30 tokens, got ", T);
  check(spans.is_cuda(), "spans: expected on CUDA");
  int64_t P = 0;
  if (projection) {
    check(projection->scalar_type() == ScalarType::Float, "projection: expected float32");
    check(projection->dim() == 2 && projection->size(0) == D, "projection: expected [D, P]");
    check(projection->is_cuda(), "projection: expected on CUDA");
    projection = torch::stable::contiguous(*projection);
    P = projection->size(1);
  }
  const torch::stable::accelerator::DeviceGuard guard(hidden_states.get_device_index());
  spans = torch::stable::contiguous(spans);

  Tensor pooled = torch::stable::new_empty(hidden_states, {B, S, D}, ScalarType::Float);
  Tensor projected = torch::stable::new_empty(hidden_states, {B, S, P}, ScalarType::Float);
  if (B == 0 || S == 0) return {pooled, projected};
  if (D == 0) return {pooled, torch::stable::zero_(projected)};

  void* stream_handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(hidden_states.get_device_index(), &stream_handle));
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  PoolArguments a{};
  a.hidden_states = hidden_states.const_data_ptr();
  a.spans = spans.const_data_ptr<int32_t>();
  a.pooled = pooled.mutable_data_ptr<float>();
  a.B = B, a.T = T, a.D = D, a.S = S, a.P = P;
  a.stride_b = hidden_states.stride(0);
  a.stride_t = hidden_states.stride(1);
  a.stride_d = hidden_states.stride(2);
  std::optional<Tensor> partial, arrived;
  if (P > 0) {
    const int64_t num_slices = (D + kWidth - 1) / kWidth;
    const int64_t groups = (B + kSamples - 1) / kSamples * span_groups(S);
    partial = torch::stable::new_empty(pooled, {num_slices, B, S, P});
    arrived = torch::stable::new_empty(pooled, {groups}, ScalarType::Int);
    a.projection = projection->const_data_ptr<float>();
    a.projected = projected.mutable_data_ptr<float>();
    a.partial = partial->mutable_data_ptr<float>();
    a.arrived = reinterpret_cast<unsigned*>(arrived->mutable_data_ptr<int32_t>());
    check_cuda(cudaMemsetAsync(a.arrived, 0, groups * sizeof(unsigned), stream));
  }
  switch (hidden_states.scalar_type()) {
    case ScalarType::Float:
      launch<Float32>(a, stream);
      break;
    case ScalarType::BFloat16:
      launch<BFloat16>(a, stream);
      break;
    case ScalarType::Half:
      launch<Float16>(a, stream);
      break;
    default:
      check(false, "hidden_states: expected float32, bfloat16 or float16");
  }
  check_cuda(cudaGetLastError());
  return {pooled, projected};
}

}  // namespace

}  // namespace safetyspace::cuda

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CUDA, m) {
  m.impl("pool_project", TORCH_BOX(&safetyspace::cuda::pool_project));
}
