// Runs a CUDA kernel's code on the CPU: one thread for each of its threads, so that the sanitizers
// see what it does. Only what the kernels here use.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#define __device__

struct Index {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline thread_local Index threadIdx, blockIdx, gridDim;

namespace emulation {

constexpr int kWarp = 32;

class Barrier {
 public:
  explicit Barrier(int threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Warp {
  Barrier barrier{kWarp};
  float values[kWarp];
};

struct Block {
  Block(int threads, int shared_floats) : barrier(threads), warps(threads / kWarp) {
    // A read before a write gives NaN.
    shared.assign(shared_floats, std::bit_cast<float>(0x7fc00000u));
  }
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<float> shared;
};

inline thread_local Block* block;

// Call body(shared memory) for every thread of every block, `together` blocks at a time.
template <typename Body>
void run(Index grid, int threads, int shared_floats, unsigned together, Body body) {
  for (unsigned first = 0; first < grid.x * grid.y; first += together) {
    const unsigned count = std::min(together, grid.x * grid.y - first);
    std::vector<std::thread> running;
    std::deque<Block> blocks;  // they cannot be moved
    for (unsigned i = 0; i < count; ++i) blocks.emplace_back(threads, shared_floats);
    for (unsigned i = 0; i < count * threads; ++i) {
      running.emplace_back([&, i] {
        const unsigned number = first + i / threads;
        threadIdx = {i % threads, 0};
        blockIdx = {number % grid.x, number / grid.x};
        gridDim = grid;
        block = &blocks[i / threads];
        body(block->shared.data());
      });
    }
    for (auto& thread : running) thread.join();
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::block->barrier.wait(); }

// The barriers and the atomic addition below order memory already.
inline void __threadfence() {}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const int lane = threadIdx.x % emulation::kWarp;
  emulation::Warp& warp = emulation::block->warps[threadIdx.x / emulation::kWarp];
  warp.values[lane] = value;
  warp.barrier.wait();
  const float other = warp.values[lane ^ mask];
  warp.barrier.wait();
  return other;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
}

inline float __ldcg(const float* address) { return *address; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline _Float16 __ushort_as_half(uint16_t bits) { return std::bit_cast<_Float16>(bits); }
inline float __half2float(_Float16 value) { return value; }
