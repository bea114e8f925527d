#include "core/lora_products.h"

#include <algorithm>

#include "core/memory.h"
#include "kernels/tiles.h"

namespace glimmer {
namespace {

constexpr int kMaxChunkStrips = 16;

constexpr int strips_of(int rows) { return (rows + kStripRows - 1) / kStripRows; }

}  // namespace

void LoraProducts::Rows::clear() {
  tiles.clear();
  places.clear();
}

void LoraProducts::Rows::add(const Lora* lora) {
  const int row = static_cast<int>(places.size());
  if (!lora) {
    places.push_back({-1, 0});
    return;
  }
  // The last tile of this adapter, where it has room: those before it are full.
  const auto last = std::find_if(tiles.rbegin(), tiles.rend(),
                                 [&](const Tile& tile) { return tile.lora == lora; });
  if (last == tiles.rend() || last->count == kMaxTile) {
    tiles.push_back({lora, 1, {row}});
    places.push_back({static_cast<int>(tiles.size()) - 1, 0});
    return;
  }
  last->rows[last->count] = row;
  places.push_back({static_cast<int>(tiles.rend() - last) - 1, last->count++});
}

LoraProducts::LoraProducts(const Kernels& kernels, Team& team, int widest)
    : kernels_(kernels), team_(team), widest_(widest), threads_(team.size()) {
  for (Thread& t : threads_) {
    t.results.resize(static_cast<size_t>(kMaxTile) * kMaxChunkStrips * kStripRows);
  }
}

void LoraProducts::plan(const StepInput& in) {
  tokens_.clear();
  logit_rows_.clear();
  if (!in.loras) return;
  int rank = 0;
  for (int s = 0, row = 0, token = 0; s < in.num_sequences; ++s) {
    const Lora* const lora = in.loras[s];
    if (lora) rank = std::max(rank, lora->max_rank());
    const int end = token + in.query_lengths[s];
    for (; token < end; ++token) tokens_.add(lora);
    for (; row < in.num_logit_rows && in.logit_rows[row] < end; ++row) logit_rows_.add(lora);
  }
  if (!is_active()) return;
  stride_ = strips_of(rank) * kStripRows;
  const unsigned form = bit(Form::kFloat);
  shared_.reserve(form, static_cast<int>(tokens_.tiles.size()), widest_);
  grow(shrunk_, tokens_.tiles.size() * kMaxLoraParts * kMaxTile * stride_);
  for (Thread& t : threads_) {
    t.alone.reserve(form, kMaxTile, widest_);
    grow(t.shrunk, static_cast<size_t>(kMaxTile) * rank);
  }
}

void LoraProducts::take(int thread, const Rows& rows, int row, const float* x, int k, bool alone) {
  const Rows::Place place = rows.places[row];
  if (place.tile < 0) return;
  Activations& into = alone ? threads_[thread].alone : shared_;
  into.pack(kernels_, bit(Form::kFloat), x, k, place.tile, place.lane, rows.tiles[place.tile].count,
            widest_);
}

void LoraProducts::shrink(int thread, const Rows& rows, int layer, LoraSite site, int num_parts,
                          int k, bool alone) {
  std::atomic<int>& next = team_.counter(thread);
  const Activations& inputs = alone ? threads_[thread].alone : shared_;
  const int strips = stride_ / kStripRows;
  const int num_items = static_cast<int>(rows.tiles.size()) * num_parts * strips;
  for (int item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) {
    const int index = item / (num_parts * strips);
    const int p = item / strips % num_parts, strip = item % strips;
    const Rows::Tile& tile = rows.tiles[index];
    const LoraPart& part = tile.lora->part(layer, site, p);
    if (part.rank == 0 || part.shrunk_by != p || strip >= part.a.num_strips()) continue;
    float* const out = shrunk(index, p) + strip * kStripRows;
    kernels_.dot[glimmer::index(part.a.dtype)][glimmer::index(Form::kFloat)][tile.count - 1](
        part.a.data + strip * part.a.strip_bytes, part.a.strip_bytes, 1,
        inputs.tile(Form::kFloat, index, widest_), k, out, stride_);
    for (int i = 0; i < tile.count; ++i) {
      for (int n = 0; n < kStripRows; ++n) out[i * stride_ + n] *= part.scale;
    }
  }
}

void LoraProducts::expand(int thread, const Rows& rows, int layer, LoraSite site,
                          std::span<const Part> parts, const ProductOutput& out) {
  std::atomic<int>& next = team_.counter(thread);
  const int strips = Products::num_strips(parts);
  const int chunk = std::clamp(strips / (4 * team_.size()), 1, kMaxChunkStrips);
  const int chunks = (strips + chunk - 1) / chunk;
  const int num_items = static_cast<int>(rows.tiles.size()) * chunks;
  for (int item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) {
    const int index = item / chunks, first = item % chunks * chunk;
    const int last = std::min(first + chunk, strips);
    const Rows::Tile& tile = rows.tiles[index];
    for (int p = 0, offset = 0; p < static_cast<int>(parts.size()); ++p) {
      const int count = parts[p].linear->matrix.num_strips();
      const int from = std::max(first - offset, 0), to = std::min(last - offset, count);
      const LoraPart& part = tile.lora->part(layer, site, p);
      if (from < to && part.rank > 0) {
        expand_part(threads_[thread], index, tile, part, from, to, parts[p], out);
      }
      offset += count;
    }
  }
}

void LoraProducts::expand_part(Thread& t, int index, const Rows::Tile& tile, const LoraPart& part,
                               int from, int to, const Part& base, const ProductOutput& out) {
  const float* const inputs = shrunk(index, part.shrunk_by);
  const int form = glimmer::index(Form::kFloat);
  for (int i = 0; i < tile.count; ++i) {
    kernels_.pack[form][tile.count - 1](inputs + i * stride_, part.rank, i, t.shrunk.data());
  }
  const int width = (to - from) * kStripRows, first = from * kStripRows;
  const int columns = std::min(width, part.b.rows - first);  // the rest is padding
  kernels_.dot[glimmer::index(part.b.dtype)][form][tile.count - 1](
      part.b.data + from * part.b.strip_bytes, part.b.strip_bytes, to - from, t.shrunk.data(),
      part.rank, t.results.data(), width);
  for (int i = 0; i < tile.count; ++i) {
    const int row = tile.rows[i];
    const float* const c = &t.results[static_cast<size_t>(i) * width];
    float* const o =
        out.data + (out.scatter ? out.scatter[row] : row) * out.stride + base.column + first;
    for (int n = 0; n < columns; ++n) o[n] += c[n];
  }
}

}  // namespace glimmer
