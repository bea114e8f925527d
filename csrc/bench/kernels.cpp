// Rates of single kernels on one thread: what the arithmetic and the memory of each reach.
//
//     bench_kernels [instruction set] [products or attention]
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

// A cached split, and splits whose pages lie in memory as those of one layer do.
void bench_attention(const Kernels& kernels) {
  std::printf("\n%-8s %8s %5s %15s %15s\n", "cache", "head_dim", "rows", "cached GMAC/s",
              "streamed GMAC/s");
  const char* const names[] = {"float32", "float16", "int8"};
  constexpr size_t kBlockBytes = size_t{256} << 10, kBlocks = 1024;
  Pages pages(kBlockBytes * kBlocks);
  fill(pages.data(), pages.size(), 2);
  for (int dtype = 0; dtype < kNumKVDTypes; ++dtype) {
    for (const int head_dim : {64, 128}) {
      for (const int rows : {1, 8, 16}) {
        const size_t value_offset = static_cast<size_t>(kPageTokens) * (head_dim + 1) * 4;
        std::vector<const void*> keys, values;
        for (size_t b = 0; b < kBlocks; ++b) {
          keys.push_back(pages.data() + b * kBlockBytes);
          values.push_back(pages.data() + b * kBlockBytes + value_offset);
        }
        const std::vector<float> queries(static_cast<size_t>(head_dim) * kAttentionRows, 0.01f);
        const std::vector<int> visible(kAttentionRows, kSplitTokens);
        std::vector<float> scratch(kAttentionScratch), maximum(kAttentionRows), sum(kAttentionRows);
        std::vector<float> out(static_cast<size_t>(kAttentionRows) * head_dim);
        const auto attend = [&](size_t first_block) {
          kernels.attend_split[dtype]({.queries = queries.data(),
                                       .rows = rows,
                                       .visible = visible.data(),
                                       .keys = kSplitTokens,
                                       .head_dim = head_dim,
                                       .key_pages = &keys[first_block],
                                       .value_pages = &values[first_block],
                                       .next_pages = &keys[(first_block + kSplitPages) % kBlocks],
                                       .scratch = scratch.data(),
                                       .maximum = maximum.data(),
                                       .sum = sum.data(),
                                       .out = out.data()});
        };
        const double cached = best_seconds([&] { attend(0); });
        // Every round takes the pages of another layer, so that none is still in a cache.
        const size_t page_bytes = 2 * value_offset, layers = kBlockBytes / page_bytes;
        size_t layer = 0;
        const double streamed = best_seconds([&] {
          for (size_t b = 0; b < kBlocks; b += kSplitPages) attend(b);
          layer = (layer + 1) % layers;
          for (size_t b = 0; b < kBlocks; ++b) {
            keys[b] = pages.data() + b * kBlockBytes + layer * page_bytes;
            values[b] = pages.data() + b * kBlockBytes + layer * page_bytes + value_offset;
          }
        });
        const double macs = 2.0 * rows * head_dim * kSplitTokens;
        std::printf("%-8s %8d %5d %15.1f %15.1f\n", names[dtype], head_dim, rows,
                    macs / cached / 1e9, macs * (kBlocks / kSplitPages) / streamed / 1e9);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const InstructionSet& isa = find_instruction_set(argc > 1 ? argv[1] : "");
  const FlushDenormals flush;
  std::printf("%s, one thread\n", isa.name);
  const std::string part = argc > 2 ? argv[2] : "";
  if (part != "attention") bench_products(*isa.kernels);
  if (part != "products") bench_attention(*isa.kernels);
  return 0;
}
