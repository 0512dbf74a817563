// Runs pool_project.cuh on the CPU: pool_project_emulated FOLDER reads the arguments from files in
// FOLDER and writes pooled.bin and projected.bin beside them. With `gap` in the arguments it runs
// pool_into: each mean is followed by so many values that must stay as they are.
#include "cuda_on_cpu.h"
//
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "../../../csrc/cuda/pool_project.cuh"

using namespace safetyspace::cuda;

namespace {

// Each in an allocation of its own size, with nothing readable around it.
std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  bytes.shrink_to_fit();
  return bytes;
}

void write(const std::string& path, const std::vector<float>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

template <typename Input, int kSpans, bool kAligned>
void run(const PoolArguments& a) {
  const auto tiles =
      static_cast<unsigned>((a.B + kSamples - 1) / kSamples * ((a.D + kWidth - 1) / kWidth));
  const auto groups = static_cast<unsigned>((a.S + kMostSpans - 1) / kMostSpans);
  if (a.num_chunks == 0) {
    emulation::run({tiles, groups}, kThreads, kSharedFloats<kSpans>, 2,
                   [&](float* shared) { pool_project_block<Input, kSpans, kAligned>(a, shared); });
    return;
  }
  const auto chunks = static_cast<unsigned>(a.num_chunks);
  emulation::run({tiles * chunks, groups}, kThreads, 0, 2,
                 [&](float*) { pool_block<Input, kSpans, kAligned>(a); });
  const auto blocks = static_cast<unsigned>((a.B * a.D + kThreads - 1) / kThreads);
  if (chunks > 1) {
    emulation::run({blocks, groups}, kThreads, 0, 2, [&](float*) { add_chunks<kSpans>(a); });
  }
}

template <typename Input>
void run(const PoolArguments& a, bool aligned) {
  if (a.S <= kFewSpans) {
    aligned ? run<Input, kFewSpans, true>(a) : run<Input, kFewSpans, false>(a);
  } else {
    aligned ? run<Input, kMostSpans, true>(a) : run<Input, kMostSpans, false>(a);
  }
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = argv[1];
  std::map<std::string, int64_t> number;
  std::ifstream arguments(folder + "/arguments.txt");
  std::string name;
  for (int64_t value; arguments >> name >> value;) number[name] = value;

  const auto hidden_states = read(folder + "/hidden_states.bin");
  const auto spans = read(folder + "/spans.bin"), projection = read(folder + "/projection.bin");
  PoolArguments a{};
  a.B = number["B"], a.T = number["T"], a.D = number["D"], a.S = number["S"], a.P = number["P"];
  a.stride_b = number["stride_b"], a.stride_t = number["stride_t"], a.stride_d = number["stride_d"];
  const float nan = std::bit_cast<float>(0x7fc00000u);
  const int64_t slices = (a.D + kWidth - 1) / kWidth, groups = (a.B + kSamples - 1) / kSamples;
  const bool into = number.contains("gap");
  const int64_t width = a.D + number["gap"];
  a.pooled_b = a.S * width, a.pooled_s = width;
  if (into) a.num_chunks = chunks_of(number["longest"], a.T);
  std::vector<float> pooled(a.B * a.S * width, into ? 7.0f : nan), projected(a.B * a.S * a.P, nan);
  std::vector<float> chunk_sums(a.num_chunks > 1 ? a.num_chunks * a.B * a.S * a.D : 0, nan);
  std::vector<float> partial(slices * a.B * a.S * a.P, nan);
  std::vector<unsigned> arrived(groups * ((a.S + kMostSpans - 1) / kMostSpans));
  a.hidden_states = hidden_states.data() + number["offset_bytes"];
  a.spans = reinterpret_cast<const int32_t*>(spans.data());
  a.projection = a.P ? reinterpret_cast<const float*>(projection.data()) : nullptr;
  a.pooled = pooled.data();
  a.chunk_sums = chunk_sums.data();
  a.projected = projected.data();
  a.partial = partial.data();
  a.arrived = arrived.data();

  const bool aligned = number["aligned"];
  if (number["float32"]) run<Float32>(a, aligned);
  if (number["bfloat16"]) run<BFloat16>(a, aligned);
  if (number["float16"]) run<Float16>(a, aligned);
  write(folder + "/pooled.bin", pooled);
  write(folder + "/projected.bin", projected);
}
