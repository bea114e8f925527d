#include "core/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/activations.h"
#include "core/attention.h"

namespace glimmer {
namespace {

// With this few tokens every thread packs the inputs of a product for itself: that is cheaper than
// packing once and waiting for each other.
constexpr int kPackAloneTokens = 4;
// Strips of weights that stay in the second-level cache while all tokens pass over them.
constexpr size_t kChunkBytes = 192 << 10;
constexpr int kMaxChunkStrips = 16;

}  // namespace

// One step. All threads run `work` side by side; a barrier closes each phase.
struct Decoder::Step {
  // A matrix and its bias (or null), whose output starts at column `column` of the product.
  struct Part {
    const Matrix* matrix;
    const float* bias;
    int column;
  };
  struct Thread {
    int index = 0;
    int next_counter = 0;
    Activations alone;           // inputs packed by this thread for itself
    std::vector<float> row;      // one token's inputs
    std::vector<float> tile;     // a tile's outputs, before bias and residual
    std::vector<float> head;     // one head's channels, padded with zeros
    std::vector<uint16_t> half;  // a head's key and value
    std::unique_ptr<Sampler> sampler;
  };

  Step(Decoder& decoder, int num_threads)
      : d(decoder),
        a(decoder.architecture_),
        kernels(*decoder.isa_.kernels),
        attention(a, kernels, num_threads),
        threads(num_threads),
        counters(a.num_layers * 5 + 2) {
    widest = std::max({a.hidden_size, a.query_width(), a.intermediate_size});
    for (int i = 0; i < num_threads; ++i) {
      threads[i].index = i;
      threads[i].row.resize(widest);
      threads[i].tile.resize(static_cast<size_t>(kMaxTile) * kMaxChunkStrips * kStripRows);
      threads[i].head.resize(padded_channels(a.head_dim));
      threads[i].half.resize(2 * padded_channels(a.head_dim));
      threads[i].sampler = std::make_unique<Sampler>(kernels, a.vocab_size);
    }
  }

  // Before the threads start: everything that may allocate or throw.
  void prepare(KVCache& kv, const StepInput& in, const StepOutput& out) {
    cache = &kv;
    input = &in;
    output = &out;
    const size_t m = in.num_tokens;
    qkv_width = a.query_width() + 2 * a.kv_width();
    grow(x, m * a.hidden_size);
    grow(qkv, m * qkv_width);
    grow(attended, m * a.query_width());
    grow(gate_up, m * 2 * a.intermediate_size);
    grow(cosines, m * (a.rope_dims / 2));
    grow(sines, m * (a.rope_dims / 2));
    // The sampler works in place; logits that the caller wants are sampled from a copy.
    if (in.sampling) grow(own_logits, static_cast<size_t>(in.num_logit_rows) * a.vocab_size);
    bool room = in.num_logprobs >= 0;
    for (int i = 0; in.sampling && i < in.num_logit_rows; ++i) {
      room |= Sampler::needs_room(in.sampling[i]);
    }
    for (Thread& t : threads) {
      if (room) t.sampler->reserve();
    }
    logits = out.logits ? out.logits : in.sampling ? own_logits.data() : nullptr;
    const unsigned forms = d.weights_.forms();
    shared.reserve(forms, in.num_tokens, widest);
    for (Thread& t : threads) t.alone.reserve(forms, kPackAloneTokens, widest);
    attention.plan(in.num_sequences, in.query_lengths, in.kv_lengths, in.block_tables,
                   in.max_blocks);
    slots.clear();
    for (int s = 0, first = 0; s < in.num_sequences; first += in.query_lengths[s++]) {
      const int32_t* table = in.block_tables + static_cast<size_t>(s) * in.max_blocks;
      for (int i = 0; i < in.query_lengths[s]; ++i) {
        const int key = in.kv_lengths[s] - in.query_lengths[s] + i;
        slots.push_back({table[key / kPageTokens], key % kPageTokens});
      }
    }
    for (std::atomic<int>& c : counters) c.store(0, std::memory_order_relaxed);
    for (Thread& t : threads) t.next_counter = 0;
  }

  static void grow(std::vector<float>& v, size_t n) {
    if (v.size() < n) v.resize(n);
  }

  // What every thread runs.
  void work(Thread& t) {
    const int m = input->num_tokens;
    embed(t);
    d.pool_.barrier();
    int rows = m;                     // tokens that still matter ...
    const int32_t* chosen = nullptr;  // ... and which ones, or null for all
    for (int n = 0; n < a.num_layers; ++n) {
      const Layer& layer = d.weights_.layers[n];
      const int q = a.query_width(), kv = a.kv_width(), f = a.intermediate_size, h = a.hidden_size;
      const Part qkv_parts[] = {{&layer.q, data(layer.q_bias), 0},
                                {&layer.k, data(layer.k_bias), q},
                                {&layer.v, data(layer.v_bias), q + kv}};
      const Activations& normed = pack(t, qkv_parts, m, h, [&](int i, float* out) {
        kernels.rms_norm(&x[at_row(i, h)], layer.attn_norm.data(), h, a.norm_eps, out);
        return out;
      });
      multiply(t, qkv_parts, normed, m, qkv.data(), qkv_width, nullptr, false);
      d.pool_.barrier();
      rotate_and_append(t, n);
      d.pool_.barrier();
      std::atomic<int>& next = counter(t);
      for (int item;
           (item = next.fetch_add(1, std::memory_order_relaxed)) < attention.num_items();) {
        attention.run(t.index, item, *cache, n, qkv.data(), qkv_width, attended.data());
      }
      d.pool_.barrier();
      if (n == a.num_layers - 1) {  // what follows serves the logits alone
        rows = input->num_logit_rows;
        chosen = input->logit_rows;
      }
      const auto token = [&](int i) { return static_cast<size_t>(chosen ? chosen[i] : i); };

      const Part out_part[] = {{&layer.attn_out, data(layer.attn_out_bias), 0}};
      const Activations& values =
          pack(t, out_part, rows, q, [&](int i, float*) { return &attended[token(i) * q]; });
      multiply(t, out_part, values, rows, x.data(), h, chosen, true);
      d.pool_.barrier();
      const Part up_parts[] = {{&layer.gate, data(layer.gate_bias), 0},
                               {&layer.up, data(layer.up_bias), f}};
      const Activations& mlp_in = pack(t, up_parts, rows, h, [&](int i, float* out) {
        kernels.rms_norm(&x[token(i) * h], layer.mlp_norm.data(), h, a.norm_eps, out);
        return out;
      });
      multiply(t, up_parts, mlp_in, rows, gate_up.data(), 2 * f, nullptr, false);
      d.pool_.barrier();
      const Part down_part[] = {{&layer.down, data(layer.down_bias), 0}};
      const Activations& gated = pack(t, down_part, rows, f, [&](int i, float* out) {
        const float* gate = &gate_up[at_row(i, 2 * f)];
        kernels.swiglu(gate, gate + f, f, out);
        return out;
      });
      multiply(t, down_part, gated, rows, x.data(), h, chosen, true);
      d.pool_.barrier();
    }
    if (rows == 0 || !logits) return;
    const Part head[] = {{&d.weights_.head(), nullptr, 0}};
    const Activations& last = pack(t, head, rows, a.hidden_size, [&](int i, float* out) {
      kernels.rms_norm(&x[at_row(chosen[i], a.hidden_size)], d.weights_.final_norm.data(),
                       a.hidden_size, a.norm_eps, out);
      return out;
    });
    multiply(t, head, last, rows, logits, a.vocab_size, nullptr, false);
    d.pool_.barrier();
    if (input->sampling) sample(t);
  }

  static const float* data(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }
  static size_t at_row(int row, int width) { return static_cast<size_t>(row) * width; }

  // Counters of work taken, one per phase: every thread passes the phases in the same order.
  std::atomic<int>& counter(Thread& t) { return counters[t.next_counter++]; }

  // The rows of `count` that fall to this thread when all take equal shares.
  std::pair<int, int> share(const Thread& t, int count) const {
    const int64_t n = static_cast<int64_t>(threads.size());
    return {static_cast<int>(count * (t.index + int64_t{0}) / n),
            static_cast<int>(count * (t.index + int64_t{1}) / n)};
  }

  void embed(Thread& t) {
    const auto [first, last] = share(t, input->num_tokens);
    const int half = a.rope_dims / 2;
    for (int i = first; i < last; ++i) {
      d.weights_.embedding.unpack_row(input->token_ids[i], &x[at_row(i, a.hidden_size)]);
      // As the official code does: the angle in float32, its sine and cosine exact.
      const float position =
          static_cast<float>(input->positions[i]) / static_cast<float>(a.rope_linear_scale);
      for (int j = 0; j < half; ++j) {
        const double angle = position * d.inverse_frequencies_[j];
        cosines[at_row(i, half) + j] = static_cast<float>(std::cos(angle));
        sines[at_row(i, half) + j] = static_cast<float>(std::sin(angle));
      }
    }
  }

  // Packs the inputs of a product; make_row(i, buffer) gives those of row i, [k]. With more than a
  // few rows this ends in a barrier.
  template <size_t N, class MakeRow>
  const Activations& pack(Thread& t, const Part (&parts)[N], int rows, int k, MakeRow make_row) {
    unsigned forms = 0;
    for (const Part& part : parts) forms |= bit(part.matrix->form);
    const auto pack_row = [&](Activations& into, int i) {
      into.pack(kernels, forms, make_row(i, t.row.data()), k, i, rows);
    };
    if (rows <= kPackAloneTokens) {
      for (int i = 0; i < rows; ++i) pack_row(t.alone, i);
      return t.alone;
    }
    // Whole tiles: two threads never write to one.
    const auto [first, last] = share(t, (rows + kMaxTile - 1) / kMaxTile);
    for (int i = first * kMaxTile; i < std::min(last * kMaxTile, rows); ++i) pack_row(shared, i);
    d.pool_.barrier();
    return shared;
  }

  // out[row] (+)= weights times inputs, plus bias; row i goes to out row scatter[i] where given.
  template <size_t N>
  void multiply(Thread& t, const Part (&parts)[N], const Activations& inputs, int rows, float* out,
                size_t stride, const int32_t* scatter, bool accumulate) {
    std::atomic<int>& next = counter(t);
    if (rows == 0) return;
    int strips = 0;
    size_t strip_bytes = 0;
    for (const Part& part : parts) {
      strips += part.matrix->num_strips();
      strip_bytes = std::max(strip_bytes, part.matrix->strip_bytes);
    }
    const int fair = strips / (4 * static_cast<int>(threads.size()));
    const int chunk =
        std::clamp(std::min(fair, static_cast<int>(kChunkBytes / strip_bytes)), 1, kMaxChunkStrips);
    for (int first; (first = next.fetch_add(chunk, std::memory_order_relaxed)) < strips;) {
      int offset = 0;  // of the part's first strip
      for (const Part& part : parts) {
        const int from = std::max(first - offset, 0);
        const int to = std::min(first + chunk - offset, part.matrix->num_strips());
        if (from < to)
          multiply_strips(t, part, from, to, inputs, rows, out, stride, scatter, accumulate);
        offset += part.matrix->num_strips();
      }
    }
  }

  void multiply_strips(Thread& t, const Part& part, int from, int to, const Activations& inputs,
                       int rows, float* out, size_t stride, const int32_t* scatter,
                       bool accumulate) {
    const Matrix& w = *part.matrix;
    const size_t width = static_cast<size_t>(to - from) * kStripRows;
    const int first = from * kStripRows;
    const int columns = std::min(static_cast<int>(width), w.rows - first);  // the rest is padding
    const float* bias = part.bias ? part.bias + first : nullptr;
    for (int tile = 0; tile * kMaxTile < rows; ++tile) {
      const int tokens = Activations::tile_tokens(tile, rows);
      kernels.dot[index(w.dtype)][index(w.form)][tokens - 1](
          w.data + from * w.strip_bytes, w.strip_bytes, to - from,
          inputs.tile(w.form, tile, w.cols), w.cols, t.tile.data(), width);
      for (int i = 0; i < tokens; ++i) {
        const int row = tile * kMaxTile + i;
        const float* c = &t.tile[i * width];
        float* o = out + (scatter ? scatter[row] : row) * stride + part.column + first;
        if (bias) {
          for (int n = 0; n < columns; ++n) t.tile[i * width + n] += bias[n];
        }
        if (accumulate) {
          for (int n = 0; n < columns; ++n) o[n] += c[n];
        } else {
          std::memcpy(o, c, columns * sizeof(float));
        }
      }
    }
  }

  // Turns the queries in place and puts keys and values into the cache.
  void rotate_and_append(Thread& t, int layer) {
    const int group = a.group_size(), head_dim = a.head_dim, half = a.rope_dims / 2;
    const int channels = padded_channels(head_dim);
    const auto [first, last] = share(t, input->num_tokens * a.num_kv_heads);
    for (int i = first; i < last; ++i) {
      const int token = i / a.num_kv_heads, head = i % a.num_kv_heads;
      const float* cosine = &cosines[at_row(token, half)];
      const float* sine = &sines[at_row(token, half)];
      float* row = &qkv[at_row(token, qkv_width)];
      for (int j = 0; j < group; ++j) rotate(row + (head * group + j) * head_dim, cosine, sine);
      float* key = row + a.query_width() + head * head_dim;
      rotate(key, cosine, sine);
      const float* value = key + a.kv_width();
      const auto [block, slot] = slots[token];
      void* const keys = cache->keys(block, layer, head);
      void* const values = cache->values(block, layer, head);
      if (cache->dtype() == KVDType::kF32) {
        append(key, value, slot, static_cast<float*>(keys), static_cast<float*>(values));
      } else {
        kernels.to_half(padded(t, key), channels, t.half.data());
        kernels.to_half(padded(t, value), channels, t.half.data() + channels);
        append(t.half.data(), t.half.data() + channels, slot, static_cast<uint16_t*>(keys),
               static_cast<uint16_t*>(values));
      }
    }
  }

  // One token's key and value, [head_dim], into their slot of a page.
  template <class T>
  void append(const T* key, const T* value, int slot, T* keys, T* values) const {
    for (int c = 0; c < a.head_dim; ++c) keys[c * kPageTokens + slot] = key[c];
    std::copy(value, value + a.head_dim, values + slot * padded_channels(a.head_dim));
  }

  // A head's channels, followed by zeros up to a whole vector.
  const float* padded(Thread& t, const float* head) const {
    std::copy(head, head + a.head_dim, t.head.begin());
    return t.head.data();
  }

  void rotate(float* v, const float* cosine, const float* sine) const {
    const int half = a.rope_dims / 2;
    const bool interleaved = a.rope_pairing == RopePairing::kInterleaved;
    for (int j = 0; j < half; ++j) {
      float& first = v[interleaved ? 2 * j : j];
      float& second = v[interleaved ? 2 * j + 1 : j + half];
      const float rotated = first * cosine[j] - second * sine[j];
      second = second * cosine[j] + first * sine[j];
      first = rotated;
    }
  }

  void sample(Thread& t) {
    std::atomic<int>& next = counter(t);
    const int k = std::max(input->num_logprobs, 0);
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < input->num_logit_rows;) {
      float* row = &own_logits[at_row(i, a.vocab_size)];
      if (logits != own_logits.data()) {
        std::memcpy(row, logits + at_row(i, a.vocab_size), a.vocab_size * sizeof(float));
      }
      RowResult result{.top_ids = output->top_ids + at_row(i, k),
                       .top_logprobs = output->top_logprobs + at_row(i, k)};
      t.sampler->sample(input->sampling[i], row, input->num_logprobs, result);
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
  Attention attention;
  std::vector<Thread> threads;
  std::vector<std::atomic<int>> counters;
  int widest = 0, qkv_width = 0;
  std::vector<Slot> slots;            // where each token's key and value go
  std::vector<float> x;               // [tokens][hidden_size], the residual stream
  std::vector<float> qkv;             // [tokens][qkv_width]
  std::vector<float> attended;        // [tokens][query_width]
  std::vector<float> gate_up;         // [tokens][2 * intermediate_size]
  std::vector<float> cosines, sines;  // [tokens][rope_dims / 2]
  std::vector<float> own_logits;      // [logit rows][vocab_size]
  float* logits = nullptr;
  Activations shared;
};

Decoder::Decoder(const Architecture& architecture, int num_threads, std::string_view isa,
                 Form int4_inputs)
    : architecture_((architecture.check(), architecture)),
      isa_(find_instruction_set(isa)),
      pool_(num_threads),
      weights_(architecture_, int4_inputs),
      step_(std::make_unique<Step>(*this, num_threads)) {
  for (int i = 0; i < architecture_.rope_dims; i += 2) {
    inverse_frequencies_.push_back(static_cast<float>(
        1.0 / std::pow(architecture_.rope_base, static_cast<double>(i) / architecture_.rope_dims)));
  }
}

Decoder::~Decoder() = default;

void Decoder::step(KVCache& cache, const StepInput& input, const StepOutput& output) {
  const std::lock_guard<std::mutex> turn(stepping_);
  check_step(architecture_, cache, input);
  step_->prepare(cache, input, output);
  pool_.run([&](int thread) { step_->work(step_->threads[thread]); });
}

}  // namespace glimmer
