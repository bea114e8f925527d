#include "core/products.h"

#include <cstring>

namespace glimmer {
namespace {

// Strips of weights that stay in the second-level cache while all tokens pass over them.
constexpr size_t kChunkBytes = 192 << 10;
constexpr int kMaxChunkStrips = 16;

}  // namespace

Products::Products(const Kernels& kernels, Team& team, int widest)
    : kernels_(kernels), team_(team), widest_(widest), threads_(team.size()) {
  for (Thread& t : threads_) {
    t.row.resize(widest);
    t.tile.resize(static_cast<size_t>(kMaxTile) * kMaxChunkStrips * kStripRows);
  }
}

void Products::reserve(unsigned forms, int num_rows) {
  shared_.reserve(forms, num_tiles(num_rows), widest_);
  for (Thread& t : threads_) t.alone.reserve(forms, 1, widest_);
}

unsigned Products::forms_of(std::span<const Part> parts) {
  unsigned forms = 0;
  for (const Part& part : parts) forms |= bit(part.linear->matrix.form);
  return forms;
}

int Products::num_strips(std::span<const Part> parts) {
  int strips = 0;
  for (const Part& part : parts) strips += part.linear->matrix.num_strips();
  return strips;
}

size_t Products::strip_bytes(std::span<const Part> parts) {
  size_t bytes = 0;
  for (const Part& part : parts) bytes = std::max(bytes, part.linear->matrix.strip_bytes);
  return bytes;
}

int Products::chunk_strips(int strips, size_t strip_bytes) const {
  const int fair = strips / (4 * team_.size());
  return std::clamp(std::min(fair, static_cast<int>(kChunkBytes / strip_bytes)), 1,
                    kMaxChunkStrips);
}

void Products::multiply(int thread, std::span<const Part> parts, const PackedRows& inputs,
                        const ProductOutput& out) {
  std::atomic<int>& next = team_.counter(thread);
  if (inputs.rows == 0) return;
  const int strips = num_strips(parts);
  const int chunk = chunk_strips(strips, strip_bytes(parts));
  for (int first; (first = next.fetch_add(chunk, std::memory_order_relaxed)) < strips;) {
    multiply_strips(thread, parts, first, std::min(first + chunk, strips), inputs, out);
  }
}

void Products::multiply_strips(int thread, std::span<const Part> parts, int first, int last,
                               const PackedRows& inputs, const ProductOutput& out) {
  int offset = 0;  // of the part's first strip
  for (const Part& part : parts) {
    const int strips = part.linear->matrix.num_strips();
    const int from = std::max(first - offset, 0), to = std::min(last - offset, strips);
    if (from < to) multiply_part(threads_[thread], part, from, to, inputs, out);
    offset += strips;
  }
}

void Products::multiply_part(Thread& t, const Part& part, int from, int to,
                             const PackedRows& inputs, const ProductOutput& out) {
  const Matrix& w = part.linear->matrix;
  const size_t width = static_cast<size_t>(to - from) * kStripRows;
  const int first = from * kStripRows;
  const int columns = std::min(static_cast<int>(width), w.rows - first);  // the rest is padding
  const float* bias = part.linear->bias.empty() ? nullptr : part.linear->bias.data() + first;
  for (int tile = 0; tile < num_tiles(inputs.rows); ++tile) {
    const int rows = tile_rows(tile, inputs.rows);
    kernels_.dot[index(w.dtype)][index(w.form)][rows - 1](
        w.data + from * w.strip_bytes, w.strip_bytes, to - from,
        inputs.tiles->tile(w.form, inputs.first_tile + tile, inputs.width), w.cols, t.tile.data(),
        width);
    for (int i = 0; i < rows; ++i) {
      const int row = tile * kMaxTile + i;
      float* c = &t.tile[i * width];
      float* o =
          out.data + (out.scatter ? out.scatter[row] : row) * out.stride + part.column + first;
      if (bias) {
        for (int n = 0; n < columns; ++n) c[n] += bias[n];
      }
      if (out.accumulate) {
        for (int n = 0; n < columns; ++n) o[n] += c[n];
      } else {
        std::memcpy(o, c, columns * sizeof(float));
      }
    }
  }
}

}  // namespace glimmer
