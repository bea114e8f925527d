// The mixture of experts of one layer, for a whole batch.
//
// A router chooses experts for every row. Each pair of a row and one of its experts becomes a row
// of a larger batch, in which the pairs of one expert lie together: a *group*, whose rows share
// tiles and are multiplied with that expert's weights alone. The shared experts are one more group,
// of all rows. The products of all groups run at once, cut into items that threads take in any
// order. In the end the pairs of each row are added up in ascending order of experts, the shared
// ones last: a row's bits depend neither on its company nor on the threads.
#pragma once

#include <vector>

#include "core/lora_products.h"
#include "core/mlp.h"
#include "core/products.h"
#include "core/team.h"
#include "core/weights.h"
#include "kernels/kernels.h"

namespace glimmer {

class ExpertMlp {
 public:
  static constexpr int kCountedPhases = 3;  // of each call of run

  // Of an architecture that has experts.
  ExpertMlp(const Architecture& architecture, const Kernels& kernels, Team& team,
            Products& products);

  // Before the threads start.
  void reserve(unsigned forms, int num_rows);

  // What adapters add to the shared experts of a layer.
  struct Adapted {
    LoraProducts& lora;
    const LoraProducts::Rows& rows;
    int layer;
  };

  // What every thread runs, from inputs [rows][hidden_size] that are there for all of them. It
  // returns when the thread's own share of the rows of out [rows][hidden_size] is written.
  // `adapted` is null where no row has an adapter.
  void run(int thread, const ExpertWeights& weights, const float* inputs, int rows, float* out,
           const Adapted* adapted);

 private:
  struct Group {
    MlpParts parts;
    int width;  // inner channels
    int first_pair, num_pairs;
    int first_tile;
  };
  struct Tile {
    int group, index;  // within the group
  };
  struct Item {
    int group, first_strip, last_strip;
  };
  using PartsOf = std::span<const Part> (MlpParts::*)() const;
  struct Product {  // MlpParts::inner or MlpParts::down of all groups
    PartsOf parts;
    std::vector<Item> items;
  };
  struct Thread {
    std::vector<float> scores, choices;  // [num_experts]
    std::vector<int> order;              // [num_experts]
    std::vector<float> group_choices;    // [num_groups]
    std::vector<int> group_order;        // [num_groups]
    std::vector<float> row;              // [tile_width_]
  };

  void route(Thread& t, const ExpertWeights& weights, int row);
  void leave_best_groups(Thread& t) const;
  void make_groups(const ExpertWeights& weights, int rows);
  void add_group(const MlpWeights& mlp, int width, int first_pair, int num_pairs);
  void cut(Product& product) const;
  // Packs the inputs of a product; make_row(group, pair, buffer) gives those of one pair.
  template <class MakeRow>
  void pack(int thread, const Product& product, MakeRow make_row);
  // Of all groups, and behind it what adapters add to the shared experts, whose first pair is
  // `first_shared`. All of it is there when this returns.
  void multiply(int thread, const Product& product, float* out, size_t stride, LoraSite site,
                const MlpParts& shared, int width, int first_shared, const Adapted* adapted);
  void combine(int row, int rows, float* out) const;

  const Architecture& a_;
  const Experts& e_;
  const Kernels& kernels_;
  Team& team_;
  Products& products_;
  const int tile_width_;      // inputs that a tile has room for in both products
  const size_t inner_width_;  // columns of the widest group's first product
  std::vector<Thread> threads_;
  std::vector<float> router_logits_;   // [rows][num_experts]
  std::vector<int> chosen_;            // [rows][num_experts_per_token] experts, ascending
  std::vector<float> chosen_weights_;  // [rows][num_experts_per_token]
  std::vector<int> pair_of_;           // [rows][num_experts_per_token]
  std::vector<int> row_of_;            // [pairs]
  std::vector<int> next_pair_;         // [num_experts + 1]
  std::vector<Group> groups_;
  std::vector<Tile> tiles_;
  Product inner_product_{&MlpParts::inner, {}}, down_product_{&MlpParts::down, {}};
  Activations packed_;
  std::vector<float> inner_;    // [pairs][inner_width_]
  std::vector<float> results_;  // [pairs][hidden_size]
};

}  // namespace glimmer
