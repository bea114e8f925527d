#include "core/decoder.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>

#include "core/attention.h"
#include "core/experts.h"
#include "core/memory.h"
#include "core/mlp.h"
#include "core/products.h"
#include "core/rotary.h"
#include "core/team.h"

namespace glimmer {

// One step. All threads run `work` side by side; a barrier closes each phase.
struct Decoder::Step {
  // Rows of the batch that still matter, and which tokens they are (null: all, in order).
  struct Rows {
    int count;
    const int32_t* chosen;
    int token(int row) const { return chosen ? chosen[row] : row; }
  };

  Step(Decoder& decoder, int num_threads)
      : d(decoder),
        a(decoder.architecture_),
        kernels(*decoder.isa_.kernels),
        team(decoder.pool_, a.num_layers * (3 + std::max(2, ExpertMlp::kCountedPhases)) + 2),
        products(kernels, team, std::max({a.hidden_size, a.query_width(), a.intermediate_size})),
        rotary(a),
        attention(a, kernels, num_threads) {
    if (a.experts) experts.emplace(a, kernels, team, products);
    for (int i = 0; i < num_threads; ++i) samplers.emplace_back(kernels, a.vocab_size);
  }

  // Before the threads start: everything that may allocate or throw.
  void prepare(KVCache& kv, const StepInput& in, const StepOutput& out) {
    cache = &kv;
    input = &in;
    output = &out;
    const size_t m = in.num_tokens;
    grow(x, m * a.hidden_size);
    grow(qkv, m * qkv_width);
    grow(attended, m * a.query_width());
    grow(inner, m * inner_columns(a.mlp, a.intermediate_size));
    if (experts) grow(normed, m * a.hidden_size);
    if (experts || !adds_directly) grow(results, m * a.hidden_size);
    rotary.reserve(in.num_tokens);
    // The sampler works in place; logits that the caller wants are sampled from a copy.
    if (in.sampling) grow(own_logits, static_cast<size_t>(in.num_logit_rows) * a.vocab_size);
    bool room = in.num_logprobs >= 0;
    for (int i = 0; in.sampling && i < in.num_logit_rows; ++i) {
      room |= Sampler::needs_room(in.sampling[i]);
    }
    for (Sampler& sampler : samplers) {
      if (room) sampler.reserve();
    }
    logits = out.logits ? out.logits : in.sampling ? own_logits.data() : nullptr;
    products.reserve(d.weights_.forms(), in.num_tokens);
    if (experts) experts->reserve(d.weights_.forms(), in.num_tokens);
    attention.plan(in);
    slots.clear();
    for (int s = 0, first = 0; s < in.num_sequences; first += in.query_lengths[s++]) {
      const int32_t* table = in.block_tables + static_cast<size_t>(s) * in.max_blocks;
      for (int i = 0; i < in.query_lengths[s]; ++i) {
        const int key = in.kv_lengths[s] - in.query_lengths[s] + i;
        slots.push_back({table[key / kPageTokens], key % kPageTokens});
      }
    }
    team.reset();
  }

  // What every thread runs.
  void work(int t) {
    embed(t);
    team.barrier(t);
    keep_hidden(t, 0);
    Rows rows{input->num_tokens, nullptr};
    for (int n = 0; n < a.num_layers; ++n) {
      const Layer& layer = d.weights_.layers[n];
      attend(t, n);
      // What follows the last attention serves the logits alone.
      if (n == a.num_layers - 1) rows = {input->num_logit_rows, input->logit_rows};
      project_attended(t, layer, rows);
      if (layer.experts) {
        run_experts(t, layer, rows);
      } else {
        run_mlp(t, layer, rows);
      }
      keep_hidden(t, n + 1);
    }
    if (rows.count == 0 || !logits) return;
    const Part head[] = {{&d.weights_.head(), 0}};
    const PackedRows last = pack_normed(t, head, rows, d.weights_.final_norm);
    products.multiply(t, head, last, {logits, static_cast<size_t>(a.vocab_size)});
    team.barrier(t);
    if (input->sampling) sample(t);
  }

  static size_t at_row(int row, int width) { return static_cast<size_t>(row) * width; }

  void embed(int t) {
    const auto [first, last] = team.share(t, input->num_tokens);
    for (int i = first; i < last; ++i) {
      d.weights_.embedding.matrix.unpack_row(input->token_ids[i], &x[at_row(i, a.hidden_size)]);
      rotary.place(i, input->positions[i], input->block_positions ? input->block_positions[i] : 0);
    }
  }

  // The residual stream of the logit rows, for whoever wants it. Nobody changes it before the next
  // barrier.
  void keep_hidden(int t, int layer) {
    if (!output->hidden) return;
    const auto [first, last] = team.share(t, input->num_logit_rows);
    for (int i = first; i < last; ++i) {
      const size_t row = static_cast<size_t>(layer) * input->num_logit_rows + i;
      std::memcpy(output->hidden + row * a.hidden_size,
                  &x[at_row(input->logit_rows[i], a.hidden_size)], a.hidden_size * sizeof(float));
    }
  }

  // From the residual stream to the heads' mixed values.
  void attend(int t, int n) {
    const Layer& layer = d.weights_.layers[n];
    const int q = a.query_width(), kv = a.kv_width();
    const Part parts[] = {{&layer.q, 0}, {&layer.k, q}, {&layer.v, q + kv}};
    const PackedRows normed = pack_normed(t, parts, {input->num_tokens, nullptr}, layer.attn_norm);
    products.multiply(t, parts, normed, {qkv.data(), static_cast<size_t>(qkv_width)});
    team.barrier(t);
    rotate_and_append(t, n);
    team.barrier(t);
    std::atomic<int>& next = team.counter(t);
    for (int item; (item = next.fetch_add(1, std::memory_order_relaxed)) < attention.num_items();) {
      attention.run(t, item, *cache, n, qkv.data(), qkv_width, attended.data());
    }
    team.barrier(t);
  }

  // Turns the queries in place and puts keys and values into the cache.
  void rotate_and_append(int t, int n) {
    const Layer& layer = d.weights_.layers[n];
    const int group = a.group_size(), head_dim = a.head_dim;
    const auto [first, last] = team.share(t, input->num_tokens * a.num_kv_heads);
    for (int i = first; i < last; ++i) {
      const int token = i / a.num_kv_heads, head = i % a.num_kv_heads;
      float* row = &qkv[at_row(token, qkv_width)];
      for (int j = 0; j < group; ++j) {
        turn(row + (head * group + j) * head_dim, token, layer.q_norm);
      }
      float* key = row + a.query_width() + head * head_dim;
      turn(key, token, layer.k_norm);
      const auto [block, slot] = slots[token];
      cache->append(kernels, block, slot, n, head, key, key + a.kv_width());
    }
  }

  // Readies a query or key head, [head_dim], for attention.
  void turn(float* head, int token, const std::vector<float>& norm_weight) {
    if (a.qk_norm) kernels.rms_norm(head, norm_weight.data(), a.head_dim, a.norm_eps, head);
    rotary.rotate(head, token);
  }

  void project_attended(int t, const Layer& layer, const Rows& rows) {
    const int q = a.query_width();
    const Part parts[] = {{&layer.attn_out, 0}};
    const PackedRows values = products.pack(t, parts, rows.count, q, [&](int i, float*) {
      return &attended[at_row(rows.token(i), q)];
    });
    add_product(t, parts, values, rows, layer.attn_norm, layer.attn_post_norm);
  }

  void run_mlp(int t, const Layer& layer, const Rows& rows) {
    const int width = a.intermediate_size, columns = inner_columns(a.mlp, width);
    const MlpParts parts(a.mlp, layer.mlp, width);
    const PackedRows normed = pack_normed(t, parts.inner(), rows, layer.mlp_norm);
    products.multiply(t, parts.inner(), normed, {inner.data(), static_cast<size_t>(columns)});
    team.barrier(t);
    const PackedRows activated =
        products.pack(t, parts.down(), rows.count, width, [&](int i, float* out) {
          activate(kernels, a.mlp, &inner[at_row(i, columns)], width, out);
          return out;
        });
    add_product(t, parts.down(), activated, rows, layer.mlp_norm, layer.mlp_post_norm);
  }

  void run_experts(int t, const Layer& layer, const Rows& rows) {
    const int h = a.hidden_size;
    const auto [first, last] = team.share(t, rows.count);
    for (int i = first; i < last; ++i) {
      norm(layer.mlp_norm, &x[at_row(rows.token(i), h)], &normed[at_row(i, h)]);
    }
    team.barrier(t);
    experts->run(t, *layer.experts, normed.data(), rows.count, results.data());
    add_results(t, rows, layer.mlp_norm, layer.mlp_post_norm);
    team.barrier(t);
  }

  void norm(const NormWeights& weights, const float* from, float* to) const {
    if (a.norm == Norm::kLayer) {
      kernels.layer_norm(from, weights.weight.data(), weights.bias.data(), a.hidden_size,
                         a.norm_eps, to);
    } else {
      kernels.rms_norm(from, weights.weight.data(), a.hidden_size, a.norm_eps, to);
    }
  }

  // Packs rows of the residual stream, normed, as the inputs of a product.
  PackedRows pack_normed(int t, std::span<const Part> parts, const Rows& rows,
                         const NormWeights& weights) {
    return products.pack(t, parts, rows.count, a.hidden_size, [&](int i, float* out) {
      norm(weights, &x[at_row(rows.token(i), a.hidden_size)], out);
      return out;
    });
  }

  // Adds the last product of attention or MLP to the residual stream. `before` is the norm that its
  // inputs came through.
  void add_product(int t, std::span<const Part> parts, const PackedRows& inputs, const Rows& rows,
                   const NormWeights& before, const NormWeights& after) {
    const size_t h = a.hidden_size;
    if (adds_directly) {
      products.multiply(t, parts, inputs, {x.data(), h, rows.chosen, true});
    } else {
      products.multiply(t, parts, inputs, {results.data(), h});
      team.barrier(t);
      add_results(t, rows, before, after);
    }
    team.barrier(t);
  }

  // The same for this thread's share of rows that lie in `results`.
  void add_results(int t, const Rows& rows, const NormWeights& before, const NormWeights& after) {
    const int h = a.hidden_size;
    const auto [first, last] = team.share(t, rows.count);
    for (int i = first; i < last; ++i) {
      float* const stream = &x[at_row(rows.token(i), h)];
      float* const result = &results[at_row(i, h)];
      if (a.norm_place == NormPlace::kSandwich) norm(after, result, result);
      if (a.residual == Residual::kNormed) {
        norm(before, stream, stream);
        for (int c = 0; c < h; ++c) stream[c] *= a.residual_scale;
      }
      for (int c = 0; c < h; ++c) stream[c] += result[c];
    }
  }

  void sample(int t) {
    std::atomic<int>& next = team.counter(t);
    const int k = std::max(input->num_logprobs, 0);
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < input->num_logit_rows;) {
      float* row = &own_logits[at_row(i, a.vocab_size)];
      if (logits != own_logits.data()) {
        std::memcpy(row, logits + at_row(i, a.vocab_size), a.vocab_size * sizeof(float));
      }
      RowResult result{.top_ids = output->top_ids + at_row(i, k),
                       .top_logprobs = output->top_logprobs + at_row(i, k)};
      samplers[t].sample(input->sampling[i], row, input->num_logprobs, result);
      output->token_ids[i] = result.token;
      if (output->logprobs) output->logprobs[i] = result.logprob;
    }
  }

  struct Slot {
    int block, index;
  };

  Decoder& d;
  const Architecture& a;
  const Kernels& kernels;
  KVCache* cache = nullptr;
  const StepInput* input = nullptr;
  const StepOutput* output = nullptr;
  Team team;
  Products products;
  Rotary rotary;
  Attention attention;
  std::optional<ExpertMlp> experts;
  std::vector<Sampler> samplers;  // one per thread
  const int qkv_width = a.query_width() + 2 * a.kv_width();
  // Whether a product can be added to the residual stream piece by piece, as it is made.
  const bool adds_directly = a.norm_place == NormPlace::kPre && a.residual == Residual::kInput;
  std::vector<Slot> slots;        // where each token's key and value go
  std::vector<float> x;           // [tokens][hidden_size], the residual stream
  std::vector<float> qkv;         // [tokens][qkv_width]
  std::vector<float> attended;    // [tokens][query_width]
  std::vector<float> inner;       // [rows][inner_columns], of the MLP
  std::vector<float> normed;      // [rows][hidden_size], inputs of the experts
  std::vector<float> results;     // [rows][hidden_size], before they are added
  std::vector<float> own_logits;  // [logit rows][vocab_size]
  float* logits = nullptr;
};

Decoder::Decoder(const Architecture& architecture, int num_threads, std::string_view isa,
                 Form int4_inputs, const std::vector<int>& cpus)
    : architecture_((architecture.check(), architecture)),
      isa_(find_instruction_set(isa)),
      pool_(num_threads, cpus),
      weights_(architecture_, int4_inputs),
      step_(std::make_unique<Step>(*this, num_threads)) {}

Decoder::~Decoder() = default;

void Decoder::step(KVCache& cache, const StepInput& input, const StepOutput& output) {
  const std::lock_guard<std::mutex> turn(stepping_);
  check_step(architecture_, cache, input);
  step_->prepare(cache, input, output);
  pool_.run([&](int thread) { step_->work(thread); });
}

}  // namespace glimmer
