// pool_project for one block of threads; knows no torch, so that tests can run it on a CPU.
//
// A block takes kSamples samples and kWidth dimensions (blockIdx.x: slices of D within groups of
// samples; blockIdx.y: groups of spans). Each of its warps pools one sample: 16 bytes a thread and
// load, four loads in flight, all spans of the group in one read. The means go to memory and to
// shared memory, where the block multiplies them with its part of the projection, which kSamples
// samples share. The last block of a group of samples to arrive adds the group's partial products
// in the order of the dimensions: one launch, and an order of additions that never changes.
//
// Without a projection (pool_into) blocks also share the tokens of long texts: each takes kChunk
// tokens, counted from the sample's first, and a second launch adds the chunks in order. A sample
// of one chunk gets the same bits either way, so no result depends on the batch around a sample.
//
// Bytes, for B samples, T tokens, D dimensions of w bytes, S spans, P projected dimensions:
//   hidden states   B T D w      read once
//   pooled          4 B S D      written
//   projection      4 D P B / kSamples, from L2
//   partial         8 B S P D / kWidth, written and read, in L2
//   chunks          8 B S D T / kChunk, written and read if T > kChunk: 3 % of bfloat16 states
#pragma once

#include <cstdint>

namespace safetyspace::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kSamples = kThreads / kWarp;
constexpr int kWidth = 128;
constexpr int kBlockRows = 32;     // that a thread adds up before they join its sum
constexpr int kProjectLanes = 64;  // threads that share a row of the projection
constexpr int kFewSpans = 2;       // mean and last token
constexpr int kMostSpans = 4;      // that one read serves: sums stand in registers
constexpr int kChunk = 256;        // tokens of a block in pool_into
constexpr int kAllChunks = -1;

struct PoolArguments {
  const void* hidden_states;  // [B, T, D]
  const int32_t* spans;       // [B, S, 2]
  const float* projection;    // [D, P], or null
  float* pooled;              // [B, S, D], rows of adjacent values
  float* chunk_sums;          // [num_chunks, B, S, D] if num_chunks > 1
  float* projected;           // [B, S, P]
  float* partial;             // [ceil(D / kWidth), B, S, P]
  unsigned* arrived;          // [ceil(B / kSamples), ceil(S / kMostSpans)], zeros
  int64_t B, T, D, S, P;
  int64_t stride_b, stride_t, stride_d;
  int64_t pooled_b, pooled_s;  // strides
  int64_t num_chunks;          // of pool_into
};

// Chunks of pool_into, if no sample's spans reach over more than `longest` of its T tokens.
inline int64_t chunks_of(int64_t longest, int64_t T) {
  const int64_t tokens = longest < T ? longest : T;
  return tokens > kChunk ? (tokens + kChunk - 1) / kChunk : 1;
}

struct Float32 {
  using Storage = float;
  static __device__ float widen(float x) { return x; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static __device__ float widen(uint16_t x) {
    return __uint_as_float(static_cast<unsigned>(x) << 16);
  }
};

struct Float16 {
  using Storage = uint16_t;
  static __device__ float widen(uint16_t x) { return __half2float(__ushort_as_half(x)); }
};

// How many values a thread loads at once.
template <typename Input>
constexpr int kValues = 16 / sizeof(typename Input::Storage);

template <int kSpans>
constexpr int kSharedFloats = kSamples * kSpans * kWidth;

// kAligned: rows start on 16 bytes, D is a multiple of kValues, and stride_d is 1.
template <typename Input, bool kAligned>
__device__ void load_values(const typename Input::Storage* row, const PoolArguments& a, int64_t d,
                            float* values) {
  constexpr int n = kValues<Input>;
  if constexpr (kAligned) {
    union {
      uint4 bytes;
      typename Input::Storage items[n];
    } packed;
    packed.bytes = d < a.D ? *reinterpret_cast<const uint4*>(row + d) : uint4{0, 0, 0, 0};
    for (int v = 0; v < n; ++v) values[v] = Input::widen(packed.items[v]);
  } else {
    for (int v = 0; v < n; ++v) {
      values[v] = d + v < a.D ? Input::widen(row[(d + v) * a.stride_d]) : 0.0f;
    }
  }
}

// The spans of a group, cut to the sample: a wrong span may give a wrong mean, never a read out of
// bounds. All lie in first .. last.
template <int kSpans>
struct Spans {
  int starts[kSpans], ends[kSpans], first, last;

  __device__ Spans(const PoolArguments& a, int64_t b, int64_t group) {
    const int T = static_cast<int>(a.T);
    first = T, last = 0;
    for (int s = 0; s < kSpans; ++s) {
      const int64_t i_span = group * kSpans + s;
      const bool exists = i_span < a.S;
      const int32_t* span = a.spans + (b * a.S + i_span) * 2;
      starts[s] = exists && span[0] > 0 ? span[0] : 0;
      ends[s] = exists ? (span[1] < T ? span[1] : T) : 0;
      if (starts[s] < ends[s]) {
        first = starts[s] < first ? starts[s] : first;
        last = ends[s] > last ? ends[s] : last;
      }
    }
  }

  __device__ int length(int s) const { return ends[s] - starts[s]; }
};

__device__ inline float mean_of(float sum, int length) {
  return length > 0 ? sum / static_cast<float>(length) : __uint_as_float(0x7fc00000u);
}

// One warp averages the spans of sample b over kWidth dimensions from `start` on; `means` gets them
// as [kSpans][kWidth], with zeros where there is no span and no dimension. Of a chunk that is not
// the only one, the sums go to memory instead.
template <typename Input, int kSpans, bool kAligned>
__device__ void pool_sample(const PoolArguments& a, int64_t b, int64_t start, int chunk,
                            float* means) {
  constexpr int n = kValues<Input>;
  constexpr int lanes = kWidth / n;         // that share a row
  constexpr int rows = kWarp / lanes;       // that a warp reads at once: 1 or 2
  constexpr int unroll = kAligned ? 4 : 2;  // loads in flight
  const int lane = threadIdx.x % kWarp;
  const int column = lane % lanes * n;
  const int64_t d = start + column;

  const Spans<kSpans> spans(a, b, blockIdx.y);
  int first = spans.first, last = spans.last;
  if (chunk != kAllChunks) {
    first += chunk * kChunk;
    if (first >= last && chunk > 0) return;
    last = last - first < kChunk ? last : first + kChunk;
  }

  const auto* sample =
      static_cast<const typename Input::Storage*>(a.hidden_states) + b * a.stride_b;
  float sums[kSpans][n] = {};
  for (int block = first; block < last; block += kBlockRows * rows) {
    float block_sums[kSpans][n] = {};
    for (int row = 0; row < kBlockRows; row += unroll) {
      const int token = block + row * rows + lane / lanes;
      float values[unroll][n] = {};
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        const int t = token + u * rows;
        if (t < last) load_values<Input, kAligned>(sample + t * a.stride_t, a, d, values[u]);
      }
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        const int t = token + u * rows;
        for (int s = 0; s < kSpans; ++s) {
          // A choice, not a product: what lies outside a span may be infinite. Past `last` the
          // values are zeros.
          const bool inside = t >= spans.starts[s] && t < spans.ends[s];
          for (int v = 0; v < n; ++v) block_sums[s][v] += inside ? values[u][v] : 0.0f;
        }
      }
    }
    for (int s = 0; s < kSpans; ++s) {
      for (int v = 0; v < n; ++v) sums[s][v] += block_sums[s][v];
    }
  }

  const bool whole = chunk == kAllChunks || a.num_chunks == 1;
  for (int s = 0; s < kSpans; ++s) {
    const int64_t i_span = blockIdx.y * kSpans + s;
    float* pooled = whole ? a.pooled + b * a.pooled_b + i_span * a.pooled_s
                          : a.chunk_sums + ((chunk * a.B + b) * a.S + i_span) * a.D;
    for (int v = 0; v < n; ++v) {
      float sum = sums[s][v];
      if constexpr (rows == 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      if (lane >= lanes) continue;
      const float value = whole ? mean_of(sum, spans.length(s)) : sum;
      const bool wanted = i_span < a.S && d + v < a.D;
      if (wanted) pooled[d + v] = value;
      if (means) means[s * kWidth + column + v] = wanted ? value : 0.0f;
    }
  }
}

// pool_into. blockIdx.x: chunks within slices of D within groups of samples.
template <typename Input, int kSpans, bool kAligned>
__device__ void pool_block(const PoolArguments& a) {
  const int64_t num_slices = (a.D + kWidth - 1) / kWidth;
  const int64_t tile = blockIdx.x / a.num_chunks;
  const int64_t b = tile / num_slices * kSamples + threadIdx.x / kWarp;
  if (b >= a.B) return;
  const int chunk = static_cast<int>(blockIdx.x % a.num_chunks);
  pool_sample<Input, kSpans, kAligned>(a, b, tile % num_slices * kWidth, chunk, nullptr);
}

// One mean a thread, from the sums of its sample's chunks. blockIdx.y: groups of spans, as above.
template <int kSpans>
__device__ void add_chunks(const PoolArguments& a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.B * a.D) return;
  const int64_t b = i / a.D, d = i % a.D;
  const Spans<kSpans> spans(a, b, blockIdx.y);
  for (int s = 0; s < kSpans; ++s) {
    const int64_t i_span = blockIdx.y * kSpans + s;
    if (i_span >= a.S) return;
    float sum = 0.0f;
    for (int chunk = 0; chunk < a.num_chunks && spans.first + chunk * kChunk < spans.last;
         ++chunk) {
      sum += a.chunk_sums[((chunk * a.B + b) * a.S + i_span) * a.D + d];
    }
    a.pooled[b * a.pooled_b + i_span * a.pooled_s + d] = mean_of(sum, spans.length(s));
  }
}

// Multiply the block's means with its part of the projection.
template <int kSpans>
__device__ void project_block(const PoolArguments& a, int64_t slice, int64_t group,
                              const float* means) {
  constexpr int stride = kThreads / kProjectLanes;
  constexpr int rows = kSamples * kSpans / stride;  // of a thread
  const int first_row = threadIdx.x / kProjectLanes;
  const int64_t start = slice * kWidth;
  const int64_t width = a.D - start < kWidth ? a.D - start : kWidth;
  for (int64_t p = threadIdx.x % kProjectLanes; p < a.P; p += kProjectLanes) {
    float products[rows] = {};
    for (int64_t d = 0; d < width; ++d) {
      const float weight = a.projection[(start + d) * a.P + p];
      for (int i = 0; i < rows; ++i) {
        products[i] += means[(first_row + i * stride) * kWidth + d] * weight;
      }
    }
    for (int i = 0; i < rows; ++i) {
      const int row = first_row + i * stride;
      const int64_t b = group * kSamples + row / kSpans, s = blockIdx.y * kSpans + row % kSpans;
      if (b < a.B && s < a.S) a.partial[((slice * a.B + b) * a.S + s) * a.P + p] = products[i];
    }
  }
}

template <typename Input, int kSpans, bool kAligned>
__device__ void pool_project_block(const PoolArguments& a, float* shared) {
  const int64_t num_slices = (a.D + kWidth - 1) / kWidth;
  const int64_t slice = blockIdx.x % num_slices, group = blockIdx.x / num_slices;
  const int warp = threadIdx.x / kWarp;
  const int64_t b = group * kSamples + warp;
  float* means = shared + warp * kSpans * kWidth;
  if (b < a.B) {
    pool_sample<Input, kSpans, kAligned>(a, b, slice * kWidth, kAllChunks, means);
  } else {
    for (int i = threadIdx.x % kWarp; i < kSpans * kWidth; i += kWarp) means[i] = 0.0f;
  }
  if (!a.projection) return;
  __syncthreads();
  project_block<kSpans>(a, slice, group, shared);

  // The partial products must be seen by all before this block counts as arrived.
  __threadfence();
  __syncthreads();
  auto* is_last = reinterpret_cast<unsigned*>(shared);
  unsigned* arrived = a.arrived + group * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) *is_last = atomicAdd(arrived, 1u) == num_slices - 1;
  __syncthreads();
  if (!*is_last) return;
  __threadfence();
  for (int64_t i = threadIdx.x; i < kSamples * kSpans * a.P; i += kThreads) {
    const int64_t row = i / a.P;
    const int64_t i_b = group * kSamples + row / kSpans, s = blockIdx.y * kSpans + row % kSpans;
    if (i_b >= a.B || s >= a.S) continue;
    const int64_t place = (i_b * a.S + s) * a.P + i % a.P;
    float sum = 0.0f;
    // Past the first cache, which does not see what other blocks wrote.
    for (int64_t k = 0; k < num_slices; ++k) {
      sum += __ldcg(a.partial + k * a.B * a.S * a.P + place);
    }
    a.projected[place] = sum;
  }
}

}  // namespace safetyspace::cuda
