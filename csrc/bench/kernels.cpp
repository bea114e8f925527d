// Rates of single kernels on one thread: what the arithmetic and the memory of each reach.
//
//     bench_kernels [instruction set]
//
// Every figure is the best of many short runs: other programs can only make a run longer. Products
// run on weights that lie in the second-level cache, as in a prompt, and on weights that stream
// from memory, as in decoding.
#include "kernels/kernels.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/thread_pool.h"
#include "isa/isa.h"

namespace {

using namespace glimmer;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds of one call, the best of runs of about 2 ms for half a second.
template <class Call>
double best_seconds(Call call) {
  call();
  int calls = 1;
  for (;; calls *= 2) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    if (seconds_since(start) > 2e-3) break;
  }
  double best = 1e9;
  for (const auto begin = Clock::now(); seconds_since(begin) < 0.5;) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) call();
    best = std::min(best, seconds_since(start) / calls);
  }
  return best;
}

// Bits that are no denormals and no NaN as float16, float32 or integers.
void fill(uint8_t* p, size_t bytes, unsigned seed) {
  std::minstd_rand next(seed);
  for (size_t i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>((next() >> 8) % 0x3a + (i % 2));
}

void bench_products(const Kernels& kernels) {
  std::printf("%-10s %-6s %7s %14s %14s\n", "weights", "inputs", "tokens", "cached GMAC/s",
              "streamed GB/s");
  constexpr int kInputs = 4096, kStrips = 4;
  const char* const forms[] = {"float", "int8", "int16"};
  for (int d = 0; d < kNumDTypes; ++d) {
    const DTypeInfo& type = kDTypes[d];
    const size_t strip_bytes = static_cast<size_t>(kInputs / type.block_size) * type.strip_bytes;
    const int many = static_cast<int>((size_t{256} << 20) / strip_bytes);
    Pages weights(strip_bytes * many);
    fill(weights.data(), weights.size(), 1);
    for (int form = 0; form < kNumForms; ++form) {
      for (int tokens = 1; tokens <= kMaxTile; ++tokens) {
        const Kernels::Dot dot = kernels.dot[d][form][tokens - 1];
        if (!dot) continue;
        std::vector<float> x(kInputs, 0.5f), c(static_cast<size_t>(many) * kStripRows * tokens);
        std::vector<uint8_t> tile(static_cast<size_t>(kInputs) * kMaxTile * 8);
        for (int t = 0; t < tokens; ++t) {
          kernels.pack[form][tokens - 1](x.data(), kInputs, t, tile.data());
        }
        const double cached = best_seconds([&] {
          dot(weights.data(), strip_bytes, kStrips, tile.data(), kInputs, c.data(),
              kStrips * kStripRows);
        });
        const double macs = static_cast<double>(kStrips) * kStripRows * kInputs * tokens;
        const double streamed = best_seconds([&] {
          dot(weights.data(), strip_bytes, many, tile.data(), kInputs, c.data(),
              static_cast<size_t>(many) * kStripRows);
        });
        std::printf("%-10s %-6s %7d %14.1f %14.2f\n", type.name, forms[form], tokens,
                    macs / cached / 1e9, static_cast<double>(strip_bytes) * many / streamed / 1e9);
      }
    }
  }
}

void bench_attention(const Kernels& kernels) {
  std::printf("\n%-8s %8s %5s %8s %12s\n", "cache", "head_dim", "rows", "keys", "GMAC/s");
  const char* const names[] = {"float32", "float16", "int8"};
  for (int dtype = 0; dtype < kNumKVDTypes; ++dtype) {
    for (const int head_dim : {64, 128}) {
      for (const int rows : {1, 8, 16}) {
        constexpr int kKeys = kSplitTokens;
        const size_t part = static_cast<size_t>(kPageTokens) * (head_dim + 1) * 4;
        Pages pages(2 * part * kSplitPages);
        fill(pages.data(), pages.size(), 2);
        const void *keys[kSplitPages], *values[kSplitPages];
        for (int p = 0; p < kSplitPages; ++p) {
          keys[p] = pages.data() + (2 * p) * part;
          values[p] = pages.data() + (2 * p + 1) * part;
        }
        std::vector<float> queries(static_cast<size_t>(head_dim) * kAttentionRows, 0.01f);
        Pages scratch(kAttentionScratch * sizeof(float));
        std::vector<int> visible(kAttentionRows, kKeys);
        std::vector<float> maximum(kAttentionRows), sum(kAttentionRows);
        std::vector<float> out(static_cast<size_t>(kAttentionRows) * head_dim);
        const AttentionSplit split{.queries = queries.data(),
                                   .rows = rows,
                                   .visible = visible.data(),
                                   .keys = kKeys,
                                   .head_dim = head_dim,
                                   .key_pages = keys,
                                   .value_pages = values,
                                   .scratch = reinterpret_cast<float*>(scratch.data()),
                                   .maximum = maximum.data(),
                                   .sum = sum.data(),
                                   .out = out.data()};
        const double seconds = best_seconds([&] { kernels.attend_split[dtype](split); });
        std::printf("%-8s %8d %5d %8d %12.1f\n", names[dtype], head_dim, rows, kKeys,
                    2.0 * rows * head_dim * kKeys / seconds / 1e9);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const InstructionSet& isa = find_instruction_set(argc > 1 ? argv[1] : "");
  const FlushDenormals flush;
  std::printf("%s, one thread\n", isa.name);
  bench_products(*isa.kernels);
  bench_attention(*isa.kernels);
  return 0;
}
