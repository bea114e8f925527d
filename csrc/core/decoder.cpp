#include "core/decoder.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>

#include "core/attention.h"
#include "core/experts.h"
#include "core/lora_products.h"
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
    const LoraProducts::Rows* adapted;
    int token(int row) const { return chosen ? chosen[row] : row; }
  };

  Step(Decoder& decoder, int num_threads)
      : d(decoder),
        a(decoder.architecture_),
        kernels(*decoder.isa_.kernels),
        team(decoder.pool_, a.num_layers * (3 + std::max(2, ExpertMlp::kCountedPhases) +
                                            4 * LoraProducts::kCountedPhases) +
                                2 + LoraProducts::kCountedPhases),
        products(kernels, team, widest),
        lora(kernels, team, std::max(widest, a.experts ? a.experts->shared_width() : 0)),
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
    attention.plan(kv, in);
    lora.plan(in);
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
    Rows rows = all_tokens();
    for (int n = 0; n < a.num_layers; ++n) {
      const Layer& layer = d.weights_.layers[n];
      attend(t, n);
      // What follows the last attention serves the logits alone.
      if (n == a.num_layers - 1) {
        rows = {input->num_logit_rows, input->logit_rows, &lora.logit_rows()};
      }
      project_attended(t, n, rows);
      if (layer.experts) {
        run_experts(t, n, rows);
      } else {
        run_mlp(t, n, rows);
      }
      keep_hidden(t, n + 1);
    }
    if (rows.count == 0 || !logits) return;
    const Part head[] = {{&d.weights_.head(), 0}};
    multiply(t, {LoraSite::kHead, a.num_layers}, head, rows, a.hidden_size,
             NormedRows{*this, rows, d.weights_.final_norm},
             {logits, static_cast<size_t>(a.vocab_size)});
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
    const Rows rows = all_tokens();
    multiply(t, {LoraSite::kQkv, n}, parts, rows, a.hidden_size,
             NormedRows{*this, rows, layer.attn_norm},
             {qkv.data(), static_cast<size_t>(qkv_width)});
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

  void project_attended(int t, int n, const Rows& rows) {
    const Layer& layer = d.weights_.layers[n];
    const int q = a.query_width();
    const Part parts[] = {{&layer.attn_out, 0}};
    add_product(
        t, {LoraSite::kAttnOut, n}, parts, rows, q,
        [&](int i, float*) { return &attended[at_row(rows.token(i), q)]; }, layer.attn_norm,
        layer.attn_post_norm);
  }

  void run_mlp(int t, int n, const Rows& rows) {
    const Layer& layer = d.weights_.layers[n];
    const int width = a.intermediate_size, columns = inner_columns(a.mlp, width);
    const MlpParts parts(a.mlp, layer.mlp, width);
    multiply(t, {LoraSite::kMlpInner, n}, parts.inner(), rows, a.hidden_size,
             NormedRows{*this, rows, layer.mlp_norm}, {inner.data(), static_cast<size_t>(columns)});
    add_product(
        t, {LoraSite::kMlpDown, n}, parts.down(), rows, width,
        [&](int i, float* out) {
          activate(kernels, a.mlp, &inner[at_row(i, columns)], width, out);
          return out;
        },
        layer.mlp_norm, layer.mlp_post_norm);
  }

  void run_experts(int t, int n, const Rows& rows) {
    const Layer& layer = d.weights_.layers[n];
    const int h = a.hidden_size;
    const auto [first, last] = team.share(t, rows.count);
    for (int i = first; i < last; ++i) {
      norm(layer.mlp_norm, &x[at_row(rows.token(i), h)], &normed[at_row(i, h)]);
    }
    team.barrier(t);
    const ExpertMlp::Adapted adapted{lora, *rows.adapted, n};
    experts->run(t, *layer.experts, normed.data(), rows.count, results.data(),
                 lora.is_active() ? &adapted : nullptr);
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

  Rows all_tokens() const { return {input->num_tokens, nullptr, &lora.tokens()}; }

  // Makes rows of the residual stream, normed, for `multiply`.
  struct NormedRows {
    const Step& step;
    const Rows& rows;
    const NormWeights& weights;

    const float* operator()(int i, float* out) const {
      step.norm(weights, &step.x[at_row(rows.token(i), step.a.hidden_size)], out);
      return out;
    }
  };

  // Which of the network's products.
  struct Site {
    LoraSite kind;
    int layer;
  };

  // One product, with what adapters add to it; make_row(i, buffer) gives the inputs of row i, [k].
  // All of it is there when this returns.
  template <class MakeRow>
  void multiply(int t, Site site, std::span<const Part> parts, const Rows& rows, int k,
                MakeRow make_row, const ProductOutput& out) {
    if (!lora.is_active()) {
      products.multiply(t, parts, products.pack(t, parts, rows.count, k, make_row), out);
      team.barrier(t);
      return;
    }
    const bool alone = Products::packs_alone(rows.count);
    const PackedRows inputs = products.pack(t, parts, rows.count, k, [&](int i, float* buffer) {
      const float* const row = make_row(i, buffer);
      lora.take(t, *rows.adapted, i, row, k, alone);
      return row;
    });
    lora.shrink(t, *rows.adapted, site.layer, site.kind, static_cast<int>(parts.size()), k, alone);
    products.multiply(t, parts, inputs, out);
    team.barrier(t);
    lora.expand(t, *rows.adapted, site.layer, site.kind, parts, out);
    team.barrier(t);
  }

  // Adds the last product of attention or MLP to the residual stream. `before` is the norm that the
  // block's inputs came through.
  template <class MakeRow>
  void add_product(int t, Site site, std::span<const Part> parts, const Rows& rows, int k,
                   MakeRow make_row, const NormWeights& before, const NormWeights& after) {
    const size_t h = a.hidden_size;
    if (adds_directly) {
      multiply(t, site, parts, rows, k, make_row, {x.data(), h, rows.chosen, true});
      return;
    }
    multiply(t, site, parts, rows, k, make_row, {results.data(), h});
    add_results(t, rows, before, after);
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
  const int widest = std::max({a.hidden_size, a.query_width(), a.intermediate_size});
  Team team;
  Products products;
  LoraProducts lora;
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
