// Matrix products of a whole batch, shared among the threads of a step.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "core/activations.h"
#include "core/team.h"
#include "core/weights.h"
#include "kernels/kernels.h"

namespace glimmer {

// A matrix and its bias, whose output starts at column `column` of the product.
struct Part {
  const Linear* linear;
  int column;
};

// Packed rows: those of `tiles` from tile `first_tile` on, in tiles of `width` inputs.
struct PackedRows {
  const Activations* tiles;
  int first_tile;
  int width;
  int rows;
};

// Where the rows of a product go. Row i is row scatter[i] of `data` where that is given.
struct ProductOutput {
  float* data;
  size_t stride;
  const int32_t* scatter = nullptr;
  bool accumulate = false;  // added to what is there
};

class Products {
 public:
  Products(const Kernels& kernels, Team& team, int widest);

  // Before the threads start.
  void reserve(unsigned forms, int num_rows);

  // Packs the inputs of a product; make_row(i, buffer) gives those of row i, [k]. With more than a
  // few rows this ends in a barrier.
  template <class MakeRow>
  PackedRows pack(int thread, std::span<const Part> parts, int rows, int k, MakeRow make_row) {
    Thread& t = threads_[thread];
    const unsigned forms = forms_of(parts);
    const auto pack_row = [&](Activations& into, int i) {
      const int tile = i / kMaxTile;
      into.pack(kernels_, forms, make_row(i, t.row.data()), k, tile, i % kMaxTile,
                tile_rows(tile, rows), k);
    };
    if (packs_alone(rows)) {
      for (int i = 0; i < rows; ++i) pack_row(t.alone, i);
      return {&t.alone, 0, k, rows};
    }
    // Whole tiles: two threads never write to one.
    const auto [first, last] = team_.share(thread, num_tiles(rows));
    for (int i = first * kMaxTile; i < std::min(last * kMaxTile, rows); ++i) pack_row(shared_, i);
    team_.barrier(thread);
    return {&shared_, 0, k, rows};
  }

  // Weights times inputs, plus bias; threads take chunks of strips until none is left.
  void multiply(int thread, std::span<const Part> parts, const PackedRows& inputs,
                const ProductOutput& out);

  // Strips that a thread takes at a time from `strips` of `strip_bytes` at most.
  int chunk_strips(int strips, size_t strip_bytes) const;
  // The same for strips `first` to `last` of all parts alone.
  void multiply_strips(int thread, std::span<const Part> parts, int first, int last,
                       const PackedRows& inputs, const ProductOutput& out);

  // Whether `pack` has every thread pack so many rows for itself.
  static bool packs_alone(int rows) { return rows <= kPackAloneRows; }
  static unsigned forms_of(std::span<const Part> parts);
  static int num_strips(std::span<const Part> parts);
  static size_t strip_bytes(std::span<const Part> parts);

 private:
  // With this few rows every thread packs the inputs of a product for itself: that is cheaper than
  // packing once and waiting for each other.
  static constexpr int kPackAloneRows = 4;
  static_assert(kPackAloneRows <= kMaxTile);

  struct Thread {
    Activations alone;        // inputs packed by this thread for itself
    std::vector<float> row;   // one row's inputs
    std::vector<float> tile;  // a tile's outputs, before bias and sum
  };

  void multiply_part(Thread& t, const Part& part, int from, int to, const PackedRows& inputs,
                     const ProductOutput& out);

  const Kernels& kernels_;
  Team& team_;
  const int widest_;
  std::vector<Thread> threads_;
  Activations shared_;
};

}  // namespace glimmer
