// The low-rank products of a step in which some sequences have adapters.
//
// Rows that have the same adapter lie in tiles of their own, of up to 4. Beside a product of the
// network, and from the same inputs as float32, A x is computed ("shrink"), and when both are done,
// B(A x) is added to the product's results ("expand"). All sums go through the kernels of float
// weights, whose order depends on nothing but the weights, so a row's bits do not depend on its
// company; and rows without an adapter are not touched.
#pragma once

#include <span>
#include <vector>

#include "core/activations.h"
#include "core/lora.h"
#include "core/products.h"
#include "core/step.h"
#include "core/team.h"
#include "kernels/kernels.h"

namespace glimmer {

class LoraProducts {
 public:
  static constexpr int kCountedPhases = 2;  // of each product: shrink and expand

  // Which rows of a product have an adapter, and which.
  struct Rows {
    struct Tile {
      const Lora* lora;
      int count;
      int rows[kMaxTile];
    };
    struct Place {
      int tile, lane;
    };
    std::vector<Tile> tiles;
    std::vector<Place> places;  // of each row; tile -1 for none

    void clear();
    // The next row, which has this adapter; null for none.
    void add(const Lora* lora);
  };

  // `widest` are the most inputs that a row has.
  LoraProducts(const Kernels& kernels, Team& team, int widest);

  // Before the threads start.
  void plan(const StepInput& input);
  bool is_active() const { return !tokens_.tiles.empty(); }
  // Of products of all tokens, and of those of the logit rows.
  const Rows& tokens() const { return tokens_; }
  const Rows& logit_rows() const { return logit_rows_; }

  // Keeps a row's inputs, [k], where it has an adapter: each thread for itself or all together, as
  // the inputs of the product are packed.
  void take(int thread, const Rows& rows, int row, const float* x, int k, bool alone);
  void shrink(int thread, const Rows& rows, int layer, LoraSite site, int num_parts, int k,
              bool alone);
  // After the product and all of shrink.
  void expand(int thread, const Rows& rows, int layer, LoraSite site, std::span<const Part> parts,
              const ProductOutput& out);

 private:
  struct Thread {
    Activations alone;
    std::vector<float> shrunk;   // a tile's, packed: [rank][rows of the tile]
    std::vector<float> results;  // [rows of the tile][strips * 16]
  };

  float* shrunk(int tile, int part) {
    return &shrunk_[(static_cast<size_t>(tile) * kMaxLoraParts + part) * kMaxTile * stride_];
  }
  void expand_part(Thread& t, int index, const Rows::Tile& tile, const LoraPart& part, int from,
                   int to, const Part& base, const ProductOutput& out);

  const Kernels& kernels_;
  Team& team_;
  const int widest_;
  Rows tokens_, logit_rows_;
  int stride_ = 0;  // between rows of A x: the largest rank, in whole strips
  Activations shared_;
  std::vector<Thread> threads_;
  std::vector<float> shrunk_;  // [tile][part][row][stride_], scaled
};

}  // namespace glimmer
