// pool_project and pool_into on CUDA: checks, memory, launches on the current stream; the kernels
// are in the header.
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

template <typename Input, int kSpans, bool kAligned>
__global__ void __launch_bounds__(kThreads, kSpans == kFewSpans ? 2 : 1)
    pool_kernel(const PoolArguments arguments) {
  pool_block<Input, kSpans, kAligned>(arguments);
}

template <int kSpans>
__global__ void __launch_bounds__(kThreads) add_chunks_kernel(const PoolArguments arguments) {
  add_chunks<kSpans>(arguments);
}

unsigned blocks(int64_t count) {
  check(count <= INT32_MAX, "hidden_states: too many samples for one launch");
  return static_cast<unsigned>(count);
}

template <typename Input, int kSpans>
void launch(const PoolArguments& a, cudaStream_t stream) {
  constexpr int64_t n = kValues<Input>;
  const bool aligned = reinterpret_cast<uintptr_t>(a.hidden_states) % 16 == 0 && a.stride_d == 1 &&
                       a.D % n == 0 && a.stride_b % n == 0 && a.stride_t % n == 0;
  const int64_t tiles = (a.B + kSamples - 1) / kSamples * ((a.D + kWidth - 1) / kWidth);
  const unsigned groups = static_cast<unsigned>((a.S + kSpans - 1) / kSpans);
  if (a.num_chunks == 0) {
    const auto kernel = aligned ? pool_project_kernel<Input, kSpans, true>
                                : pool_project_kernel<Input, kSpans, false>;
    kernel<<<dim3(blocks(tiles), groups), kThreads, 0, stream>>>(a);
    return;
  }
  const auto kernel =
      aligned ? pool_kernel<Input, kSpans, true> : pool_kernel<Input, kSpans, false>;
  kernel<<<dim3(blocks(tiles * a.num_chunks), groups), kThreads, 0, stream>>>(a);
  if (a.num_chunks > 1) {
    const int64_t values = (a.B * a.D + kThreads - 1) / kThreads;
    add_chunks_kernel<kSpans><<<dim3(blocks(values), groups), kThreads, 0, stream>>>(a);
  }
}

template <typename Input>
void launch(const PoolArguments& a, cudaStream_t stream) {
  a.S <= kFewSpans ? launch<Input, kFewSpans>(a, stream) : launch<Input, kMostSpans>(a, stream);
}

void check_cuda(cudaError_t error) { check(error == cudaSuccess, cudaGetErrorString(error)); }

// What both operators have: their tensors are checked, and `spans` is made contiguous.
PoolArguments arguments_of(const Tensor& hidden_states, Tensor& spans) {
  check(spans.scalar_type() == ScalarType::Int, "spans: expected int32");
  check(hidden_states.dim() == 3, "hidden_states: expected shape [B, T, D]");
  check(spans.dim() == 3 && spans.size(2) == 2, "spans: expected shape [B, S, 2]");
  check(spans.size(0) == hidden_states.size(0), "spans: expected ", hidden_states.size(0),
        " samples, got ", spans.size(0));
  check(hidden_states.size(1) < (1 << 30), "hidden_states: expected fewer than 2^30 tokens, got ",
        hidden_states.size(1));
  check(spans.is_cuda(), "spans: expected on CUDA");
  spans = torch::stable::contiguous(spans);
  PoolArguments a{};
  a.hidden_states = hidden_states.const_data_ptr();
  a.spans = spans.const_data_ptr<int32_t>();
  a.B = hidden_states.size(0), a.T = hidden_states.size(1), a.D = hidden_states.size(2);
  a.S = spans.size(1);
  a.stride_b = hidden_states.stride(0);
  a.stride_t = hidden_states.stride(1);
  a.stride_d = hidden_states.stride(2);
  return a;
}

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void launch(ScalarType type, const PoolArguments& a, cudaStream_t stream) {
  switch (type) {
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
}

std::tuple<Tensor, Tensor> pool_project(Tensor hidden_states, Tensor spans,
                                        std::optional<Tensor> projection) {
  const torch::stable::accelerator::DeviceGuard guard(hidden_states.get_device_index());
  PoolArguments a = arguments_of(hidden_states, spans);
  if (projection) {
    check(projection->scalar_type() == ScalarType::Float, "projection: expected float32");
    check(projection->dim() == 2 && projection->size(0) == a.D, "projection: expected [D, P]");
    check(projection->is_cuda(), "projection: expected on CUDA");
    projection = torch::stable::contiguous(*projection);
    a.P = projection->size(1);
  }

  Tensor pooled = torch::stable::new_empty(hidden_states, {a.B, a.S, a.D}, ScalarType::Float);
  Tensor projected = torch::stable::new_empty(hidden_states, {a.B, a.S, a.P}, ScalarType::Float);
  if (a.B == 0 || a.S == 0) return {pooled, projected};
  if (a.D == 0) return {pooled, torch::stable::zero_(projected)};

  const cudaStream_t stream = stream_of(hidden_states);
  a.pooled = pooled.mutable_data_ptr<float>();
  a.pooled_b = a.S * a.D, a.pooled_s = a.D;
  std::optional<Tensor> partial, arrived;
  if (a.P > 0) {
    const int64_t num_slices = (a.D + kWidth - 1) / kWidth;
    const int64_t groups = (a.B + kSamples - 1) / kSamples * span_groups(a.S);
    partial = torch::stable::new_empty(pooled, {num_slices, a.B, a.S, a.P});
    arrived = torch::stable::new_empty(pooled, {groups}, ScalarType::Int);
    a.projection = projection->const_data_ptr<float>();
    a.projected = projected.mutable_data_ptr<float>();
    a.partial = partial->mutable_data_ptr<float>();
    a.arrived = reinterpret_cast<unsigned*>(arrived->mutable_data_ptr<int32_t>());
    check_cuda(cudaMemsetAsync(a.arrived, 0, groups * sizeof(unsigned), stream));
  }
  launch(hidden_states.scalar_type(), a, stream);
  return {pooled, projected};
}

void pool_into(Tensor hidden_states, Tensor spans, Tensor out, int64_t longest) {
  const torch::stable::accelerator::DeviceGuard guard(hidden_states.get_device_index());
  PoolArguments a = arguments_of(hidden_states, spans);
  check(out.is_cuda() && out.scalar_type() == ScalarType::Float && out.dim() == 3 &&
            out.size(0) == a.B && out.size(1) == a.S && out.size(2) == a.D &&
            (a.D < 2 || out.stride(2) == 1),
        "out: expected shape [", a.B, ", ", a.S, ", ", a.D,
        "] float32 on CUDA with adjacent dimensions");
  if (a.B == 0 || a.S == 0 || a.D == 0) return;
  a.pooled = out.mutable_data_ptr<float>();
  a.pooled_b = out.stride(0), a.pooled_s = out.stride(1);
  a.num_chunks = chunks_of(longest, a.T);
  std::optional<Tensor> sums;
  if (a.num_chunks > 1) {
    sums = torch::stable::new_empty(out, {a.num_chunks, a.B, a.S, a.D});
    a.chunk_sums = sums->mutable_data_ptr<float>();
  }
  launch(hidden_states.scalar_type(), a, stream_of(hidden_states));
}

}  // namespace

}  // namespace safetyspace::cuda

STABLE_TORCH_LIBRARY_IMPL(safetyspace_fast, CUDA, m) {
  m.impl("pool_project", TORCH_BOX(&safetyspace::cuda::pool_project));
  m.impl("pool_into", TORCH_BOX(&safetyspace::cuda::pool_into));
}
