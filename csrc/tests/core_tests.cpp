// Tests of the core without Python, for the sanitizers: kernels of all instruction sets against
// each other, whole steps alone and in a batch, wrong input. What the numbers must be is tested
// from Python, against a reference; here it is that they are the same everywhere and that no byte
// is out of place.

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/activations.h"
#include "core/decoder.h"
#include "core/error.h"
#include "core/half.h"
#include "core/lora.h"
#include "core/memory.h"
#include "core/packing.h"
#include "kernels/kernels.h"

using namespace glimmer;

namespace {

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

void expect_error(ErrorKind kind, const std::string& part, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    expect(e.kind() == kind && std::string(e.what()).find(part) != std::string::npos,
           "error about \"" + part + "\", but it says: " + e.what());
    return;
  }
  expect(false, "no error about \"" + part + "\"");
}

using Random = std::mt19937;

std::vector<float> normal(Random& random, size_t n, float scale = 1) {
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = distribution(random);
  return v;
}

void test_half() {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = half_to_float(static_cast<uint16_t>(h));
    if (std::isnan(f)) continue;
    expect(float_to_half(f) == h, "float16 round trip of " + std::to_string(h));
    const float up = std::nextafter(f, std::numeric_limits<float>::infinity());
    expect(!(float_to_half(up) < h && f > 0), "float16 rounding of " + std::to_string(h));
  }
  expect(float_to_half(1.0f + 0x1p-11f) == 0x3c00, "float16 tie goes to even, below");
  expect(float_to_half(1.0f + 3 * 0x1p-11f) == 0x3c02, "float16 tie goes to even, above");
  expect(float_to_half(65519.0f) == 0x7bff && float_to_half(65520.0f) == 0x7c00,
         "float16 overflow");
}

Architecture tiny(Random& random) {
  Architecture a;
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  a.vocab_size = pick(17, 90);
  a.hidden_size = 32 * pick(1, 3);
  a.num_layers = pick(1, 3);
  a.num_kv_heads = pick(1, 3);
  a.num_heads = a.num_kv_heads * pick(1, 5);
  a.head_dim = 32 * pick(1, 2);
  a.intermediate_size = 32 * pick(1, 4);
  a.norm_eps = 1e-5f;
  a.norm = pick(0, 1) ? Norm::kLayer : Norm::kRms;
  a.norm_place = pick(0, 1) ? NormPlace::kSandwich : NormPlace::kPre;
  a.residual = pick(0, 1) ? Residual::kNormed : Residual::kInput;
  if (a.residual == Residual::kNormed) a.residual_scale = 7.5f;
  a.rope_positions = pick(0, 1) ? RopePositions::k2d : RopePositions::k1d;
  a.rope_dims = a.head_dim / pick(2, 3) / 2 * 2;
  a.rope_base = 10000;
  a.rope_pairing = pick(0, 1) ? RopePairing::kHalf : RopePairing::kInterleaved;
  a.rope_half_frequencies = pick(0, 1);
  a.mask = pick(0, 1) ? Mask::kPrefix : Mask::kCausal;
  a.mlp = pick(0, 1) ? Mlp::kGeluTanh : Mlp::kSwiGlu;
  a.qk_norm = pick(0, 1);
  a.prefix_length = pick(0, 1) * pick(1, 40);
  if (pick(0, 1)) {
    a.experts = {.num_experts = 6,
                 .num_experts_per_token = pick(1, 4),
                 .num_shared_experts = pick(0, 2),
                 .intermediate_size = 32 * pick(1, 2),
                 .num_dense_layers = pick(0, 1),
                 .num_groups = 3,
                 .num_groups_per_token = pick(2, 3),
                 .normalize_weights = pick(0, 1) == 1,
                 .routed_scale = 2.5f};
  }
  a.qkv_bias = pick(0, 1);
  a.attention_out_bias = pick(0, 1);
  a.mlp_bias = pick(0, 1);
  a.tied_head = pick(0, 1);
  return a;
}

// With `packed`, weights are packed into it and adopted from there.
void load(Decoder& d, Random random, DType kept, std::vector<Pages>* packed = nullptr,
          std::optional<bool> in_place = {}) {
  const Architecture& a = d.architecture();
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t size = 1;
    for (const int64_t n : shape) size *= n;
    std::vector<float> v = normal(random, size, shape.size() == 2 ? 0.3f : 0.1f);
    if (name.ends_with("norm.weight")) {
      for (float& x : v) x += 1;
    }
    const auto* bytes = reinterpret_cast<const uint8_t*>(v.data());
    const size_t stored_bytes = v.size() * sizeof(float);
    if (packed == nullptr) {
      d.weights().load(name, DType::kF32, shape, {bytes, stored_bytes}, kept, d.pool());
      return;
    }
    const std::span<const uint8_t> data(bytes, stored_bytes);
    const auto [type, packed_bytes] = d.weights().kept(name, DType::kF32, shape, kept);
    const std::span<uint8_t> out(packed->emplace_back(packed_bytes).data(), packed_bytes);
    d.weights().pack(name, DType::kF32, shape, data, kept, out, d.pool());
    d.weights().adopt(name, type, shape, out, std::nullopt, in_place, d.pool());
  };
  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols, bool bias) {
    add(name + ".weight", {rows, cols});
    if (bias) add(name + ".bias", {rows});
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {a.hidden_size});
    if (a.norm == Norm::kLayer) add(name + ".bias", {a.hidden_size});
  };
  const auto mlp = [&](const std::string& name, int64_t width, bool bias) {
    if (a.mlp == Mlp::kSwiGlu) linear(name + "mlp_gate", width, a.hidden_size, bias);
    linear(name + "mlp_up", width, a.hidden_size, bias);
    linear(name + "mlp_down", a.hidden_size, width, bias);
  };
  add("embedding.weight", {a.vocab_size, a.hidden_size});
  for (int i = 0; i < a.num_layers; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    norm(layer + "attn_norm");
    norm(layer + "mlp_norm");
    if (a.norm_place == NormPlace::kSandwich) {
      norm(layer + "attn_post_norm");
      norm(layer + "mlp_post_norm");
    }
    linear(layer + "attn_q", a.query_width(), a.hidden_size, a.qkv_bias);
    linear(layer + "attn_k", a.kv_width(), a.hidden_size, a.qkv_bias);
    linear(layer + "attn_v", a.kv_width(), a.hidden_size, a.qkv_bias);
    linear(layer + "attn_out", a.hidden_size, a.query_width(), a.attention_out_bias);
    if (a.qk_norm) {
      add(layer + "attn_q_norm.weight", {a.head_dim});
      add(layer + "attn_k_norm.weight", {a.head_dim});
    }
    if (a.prefix_length > 0) {
      add(layer + "prefix_keys.weight", {a.prefix_length, a.kv_width()});
      add(layer + "prefix_values.weight", {a.prefix_length, a.kv_width()});
    }
    if (!a.has_experts(i)) {
      mlp(layer, a.intermediate_size, a.mlp_bias);
      continue;
    }
    linear(layer + "router", a.experts->num_experts, a.hidden_size, true);
    for (int e = 0; e < a.experts->num_experts; ++e) {
      mlp(layer + "experts." + std::to_string(e) + ".", a.experts->intermediate_size, false);
    }
    if (a.experts->num_shared_experts > 0) mlp(layer + "shared.", a.experts->shared_width(), false);
  }
  norm("final_norm");
  if (!a.tied_head) add("head.weight", {a.vocab_size, a.hidden_size});
  d.weights().finish();
}

// A batch of sequences that are prefilled together; returns the logits of every token. The first
// half of each is its context, where there is such a thing.
struct Batch {
  const Architecture& a;
  std::vector<int32_t> ids, positions, block_positions, lengths, kv_lengths, context_lengths,
      tables, rows;
  int max_blocks = 0;

  explicit Batch(const Architecture& architecture) : a(architecture) {}

  void add(const std::vector<int32_t>& tokens, int first_block, int blocks) {
    add_from(0, tokens, first_block, blocks);
  }
  // The last token of a sequence whose others are in the cache.
  void add_last(const std::vector<int32_t>& tokens, int first_block, int blocks) {
    add_from(tokens.size() - 1, tokens, first_block, blocks);
  }
  void add_from(size_t first, const std::vector<int32_t>& tokens, int first_block, int blocks) {
    for (size_t i = first; i < tokens.size(); ++i) {
      rows.push_back(static_cast<int32_t>(ids.size()));
      ids.push_back(tokens[i]);
      positions.push_back(static_cast<int32_t>(i));
      block_positions.push_back(static_cast<int32_t>(i / 2));
    }
    context_lengths.push_back(static_cast<int32_t>(tokens.size() / 2));
    lengths.push_back(static_cast<int32_t>(tokens.size() - first));
    kv_lengths.push_back(static_cast<int32_t>(tokens.size()));
    for (int b = 0; b < blocks; ++b) tables.push_back(first_block + b);
    max_blocks = blocks;
  }
  StepInput input() const {
    return {.num_tokens = static_cast<int>(ids.size()),
            .token_ids = ids.data(),
            .positions = positions.data(),
            .block_positions =
                a.rope_positions == RopePositions::k2d ? block_positions.data() : nullptr,
            .num_sequences = static_cast<int>(lengths.size()),
            .query_lengths = lengths.data(),
            .kv_lengths = kv_lengths.data(),
            .context_lengths = a.mask == Mask::kPrefix ? context_lengths.data() : nullptr,
            .max_blocks = max_blocks,
            .block_tables = tables.data(),
            .num_logit_rows = static_cast<int>(rows.size()),
            .logit_rows = rows.data()};
  }
  // `loras` and `prefixes` have an entry for each sequence, or none.
  std::vector<float> run(Decoder& d, KVCache& cache, const std::vector<const Lora*>& loras = {},
                         const std::vector<const KVPrefix*>& prefixes = {}) const {
    std::vector<float> logits(rows.size() * d.architecture().vocab_size);
    StepInput in = input();
    in.loras = loras.empty() ? nullptr : loras.data();
    in.prefixes = prefixes.empty() ? nullptr : prefixes.data();
    d.step(cache, in, {.logits = logits.data()});
    return logits;
  }
};

bool same(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

constexpr int kNumWritable = 6;  // types to which float32 is quantised come first

void test_steps() {
  Random random(7);
  for (int round = 0; round < 24; ++round) {
    const Architecture a = tiny(random);
    const auto kept = static_cast<DType>(round % kNumWritable);
    const auto cache_dtype = static_cast<KVDType>(round % kNumKVDTypes);
    const Form form = round % 12 < 6 ? Form::kInt8 : Form::kInt16;
    const Random weights = random;
    const int lengths[] = {1, 3, 40, 7, 65};
    const int blocks = 3;
    std::vector<std::vector<int32_t>> prompts;
    for (const int n : lengths) {
      std::vector<int32_t> prompt(n);
      for (int32_t& id : prompt) id = static_cast<int32_t>(random() % a.vocab_size);
      prompts.push_back(prompt);
    }
    std::vector<float> first;
    for (const InstructionSet& isa : instruction_sets()) {
      for (const int threads : {1, 3}) {
        Decoder d(a, threads, isa.name, form);
        load(d, weights, kept);
        KVCache cache(d, cache_dtype, blocks * 5);
        Batch together(a);
        for (int i = 0; i < 5; ++i) together.add(prompts[i], i * blocks, blocks);
        const std::vector<float> logits = together.run(d, cache);
        const std::string label = std::string(isa.name) + ", " + info(kept).name + ", " +
                                  std::to_string(threads) + " threads, round " +
                                  std::to_string(round);
        if (first.empty()) first = logits;
        expect(same(first.data(), logits.data(), logits.size()), "same bits everywhere: " + label);
        size_t offset = 0;
        for (const std::vector<int32_t>& prompt : prompts) {
          Batch alone(a);
          alone.add(prompt, 1, blocks);
          KVCache own(d, cache_dtype, 1 + blocks);
          const std::vector<float> expected = alone.run(d, own);
          expect(same(expected.data(), &logits[offset], expected.size()),
                 "alone as in a batch: " + label);
          for (int b = 0; b < blocks; ++b) own.copy_block(1 + b, b);
          Batch last(a);
          last.add_last(prompt, 0, blocks);
          const std::vector<float> continued = last.run(d, own);
          expect(same(&expected[expected.size() - continued.size()], continued.data(),
                      continued.size()),
                 "the same from copied blocks: " + label);
          offset += expected.size();
        }
      }
    }
    for (const float x : first) expect(std::isfinite(x), "finite logits");
  }
}

// Products of that rank for every linear that takes them; keys and values share the queries' A.
Lora random_lora(const Architecture& a, int rank, Random& random) {
  Lora lora(a);
  const auto add = [&](const std::string& name, int rows, int cols, const std::string& shared) {
    lora.add(name, rank, 0.5f, normal(random, static_cast<size_t>(rank) * cols),
             normal(random, static_cast<size_t>(rows) * rank, 0.1f), shared);
  };
  for (int i = 0; i < a.num_layers; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    add(layer + "attn_q", a.query_width(), a.hidden_size, "");
    add(layer + "attn_k", a.kv_width(), a.hidden_size, layer + "attn_q");
    add(layer + "attn_v", a.kv_width(), a.hidden_size, layer + "attn_q");
    add(layer + "attn_out", a.hidden_size, a.query_width(), "");
    const int width = a.has_experts(i) ? a.experts->shared_width() : a.intermediate_size;
    const std::string mlp = layer + (a.has_experts(i) ? "shared." : "");
    if (width == 0) continue;
    if (a.mlp == Mlp::kSwiGlu) add(mlp + "mlp_gate", width, a.hidden_size, "");
    add(mlp + "mlp_up", width, a.hidden_size, "");
    add(mlp + "mlp_down", a.hidden_size, width, "");
  }
  if (!a.tied_head) add("head", a.vocab_size, a.hidden_size, "");
  return lora;
}

// Sequences with adapters and prefixes beside others: each as alone, on all instruction sets and
// threads.
void test_adapters() {
  Random random(21);
  for (int round = 0; round < 12; ++round) {
    Architecture a = tiny(random);
    a.prefix_length = 0;
    const auto kept = static_cast<DType>(round % kNumWritable);
    const auto cache_dtype = static_cast<KVDType>(round % kNumKVDTypes);
    const Random weights = random;
    const int lengths[] = {1, 3, 40, 7, 65, 2};
    const int count = 6, blocks = 3;
    std::vector<std::vector<int32_t>> prompts;
    for (const int n : lengths) {
      std::vector<int32_t> prompt(n);
      for (int32_t& id : prompt) id = static_cast<int32_t>(random() % a.vocab_size);
      prompts.push_back(prompt);
    }
    const Lora one = random_lora(a, 1 + round, random), two = random_lora(a, 17, random);
    const int length = 1 + round * 7;
    const std::vector<float> rows =
        normal(random, static_cast<size_t>(a.num_layers) * 2 * length * a.kv_width());
    const std::vector<const Lora*> loras = {&one, nullptr, &two, &one, nullptr, &two};
    std::vector<float> first;
    for (const InstructionSet& isa : instruction_sets()) {
      for (const int threads : {1, 3}) {
        Decoder d(a, threads, isa.name, Form::kInt8);
        load(d, weights, kept);
        const KVPrefix prefix(d, cache_dtype, rows.data(), length);
        const std::vector<const KVPrefix*> prefixes = {nullptr, &prefix, &prefix,
                                                       nullptr, nullptr, nullptr};
        KVCache cache(d, cache_dtype, blocks * count);
        Batch together(a);
        for (int i = 0; i < count; ++i) together.add(prompts[i], i * blocks, blocks);
        const std::vector<float> logits = together.run(d, cache, loras, prefixes);
        const std::string label = std::string("adapters, ") + isa.name + ", " + info(kept).name +
                                  ", " + std::to_string(threads) + " threads, round " +
                                  std::to_string(round);
        if (first.empty()) first = logits;
        expect(same(first.data(), logits.data(), logits.size()), "same bits everywhere: " + label);
        size_t offset = 0;
        for (int i = 0; i < count; ++i) {
          Batch alone(a);
          alone.add(prompts[i], 0, blocks);
          KVCache own(d, cache_dtype, blocks);
          const bool plain = !loras[i] && !prefixes[i];
          const std::vector<float> expected =
              plain ? alone.run(d, own) : alone.run(d, own, {loras[i]}, {prefixes[i]});
          expect(same(expected.data(), &logits[offset], expected.size()),
                 "alone as in a batch: " + label);
          Batch last(a);
          last.add_last(prompts[i], 0, blocks);
          const std::vector<float> continued = last.run(d, own, {loras[i]}, {prefixes[i]});
          expect(same(&expected[expected.size() - continued.size()], continued.data(),
                      continued.size()),
                 "the last token again: " + label);
          offset += expected.size();
        }
      }
    }
    for (const float x : first) expect(std::isfinite(x), "finite logits");
  }
}

void test_adapter_errors() {
  Random random(5);
  Architecture a = tiny(random);
  a.prefix_length = 0;
  a.experts.reset();
  a.tied_head = true;
  Lora lora(a);
  const std::vector<float> values(static_cast<size_t>(a.hidden_size) * 4 * a.query_width());
  const std::span<const float> all(values);
  const auto add = [&](const std::string& name, size_t in, size_t out, const std::string& shared) {
    lora.add(name, 2, 1, all.first(2 * in), all.first(2 * out), shared);
  };
  const size_t h = a.hidden_size, q = a.query_width();
  const auto malformed = ErrorKind::kMalformedCheckpoint;
  expect_error(malformed, "no linear", [&] { add("head", h, a.vocab_size, ""); });
  expect_error(malformed, "no linear", [&] { add("layers.3.attn_q", h, q, ""); });
  expect_error(malformed, "an A of", [&] { add("layers.0.attn_q", h - 1, q, ""); });
  expect_error(malformed, "a B of", [&] { add("layers.0.attn_q", h, q - 1, ""); });
  expect_error(malformed, "cannot share",
               [&] { add("layers.0.attn_k", h, a.kv_width(), "layers.0.attn_q"); });
  add("layers.0.attn_q", h, q, "");
  expect_error(malformed, "given twice", [&] { add("layers.0.attn_q", h, q, ""); });
  expect_error(malformed, "cannot share",
               [&] { add("layers.0.attn_out", q, h, "layers.0.attn_q"); });
  Architecture other = a;
  other.hidden_size += 32;
  expect(lora.fits(a) && !lora.fits(other), "an adapter fits its own network");
}

// Every stored type with random bytes: a strip gives back what was put in, and all instruction sets
// make the same of it.
void test_packing() {
  Random random(3);
  const int cols = 512;
  for (int t = 0; t < kNumDTypes; ++t) {
    const auto dtype = static_cast<DType>(t);
    const DTypeInfo& type = info(dtype);
    const size_t stored_bytes = row_bytes(dtype, cols);
    std::vector<uint8_t> strip(static_cast<size_t>(cols / type.block_size) * type.strip_bytes);
    std::vector<float> decoded(cols), unpacked(cols);
    for (int place = 0; place < kStripRows; ++place) {
      std::vector<uint8_t> row(stored_bytes);
      if (type.integer) {
        for (uint8_t& byte : row)
          byte = static_cast<uint8_t>(random() & 0xBF);  // scales are finite
      } else {
        encode_row(dtype, normal(random, cols).data(), cols, row.data());
      }
      place_row(dtype, row.data(), cols, place, strip.data());
      decode_row(dtype, row.data(), cols, decoded.data());
      unpack_row(dtype, strip.data(), cols, place, unpacked.data());
      expect(same(decoded.data(), unpacked.data(), cols),
             std::string("a row of ") + type.name + " comes back from its strip");
    }
    const std::vector<float> x = normal(random, cols);
    for (const Form form : kForms) {
      const Kernels::Dot(&dots)[kMaxTile] =
          find_instruction_set("scalar").kernels->dot[t][index(form)];
      if (dots[0] == nullptr) continue;
      std::vector<float> first;
      for (const InstructionSet& set : instruction_sets()) {
        Activations inputs;
        inputs.reserve(bit(form), 1, cols);
        inputs.pack(*set.kernels, bit(form), x.data(), cols, 0, 0, 1, cols);
        std::vector<float> out(kStripRows);
        set.kernels->dot[t][index(form)][0](strip.data(), strip.size(), 1,
                                            inputs.tile(form, 0, cols), cols, out.data(),
                                            kStripRows);
        if (first.empty()) first = out;
        expect(same(first.data(), out.data(), out.size()),
               std::string(type.name) + " under " + set.name);
      }
    }
  }
}

// A context of several splits, decoded by one and by many threads: split by split, and in one go.
void test_long_context() {
  Random random(11);
  Architecture a = tiny(random);
  a.num_layers = 2;
  const Random weights = random;
  std::vector<int32_t> prompt(1200);
  for (int32_t& id : prompt) id = static_cast<int32_t>(random() % a.vocab_size);
  std::vector<float> first;
  for (const int threads : {1, 4}) {
    Decoder d(a, threads, "", Form::kInt8);
    load(d, weights, DType::kQ4_0);
    KVCache cache(d, KVDType::kF16, 40);
    Batch all(a);
    all.add(prompt, 0, 40);
    const std::vector<float> logits = all.run(d, cache);
    if (first.empty()) first = logits;
    expect(same(first.data(), logits.data(), logits.size()), "long prompt on several threads");
    const int32_t last = static_cast<int32_t>(prompt.size()) - 1, one = 1, row = 0;
    const int32_t keys = last + 1;
    StepInput in = all.input();
    in.num_tokens = 1;
    in.token_ids = &prompt[last];
    in.positions = &last;
    if (in.block_positions) in.block_positions += last;
    in.query_lengths = &one;
    in.kv_lengths = &keys;
    in.num_logit_rows = 1;
    in.logit_rows = &row;
    std::vector<float> again(a.vocab_size);
    d.step(cache, in, {.logits = again.data()});
    expect(same(again.data(), &first[static_cast<size_t>(last) * a.vocab_size], again.size()),
           "one token over a long context as in the prompt");
  }
}

// Norms and activations: the same bits on every instruction set, near the exact values.
// Rows placed together are rows placed one by one, whatever their number and width.
void test_place_rows() {
  Random random(4);
  for (int t = 0; t < kNumDTypes; ++t) {
    const auto dtype = static_cast<DType>(t);
    const DTypeInfo& type = info(dtype);
    for (const int blocks : {1, 3, 8, 13}) {
      const int cols = blocks * type.block_size;
      for (const int num_rows : {1, 15, 16}) {
        const size_t stored_bytes = row_bytes(dtype, cols);
        std::vector<uint8_t> rows(stored_bytes * num_rows);
        for (uint8_t& byte : rows) byte = static_cast<uint8_t>(random());
        std::vector<uint8_t> one(strip_bytes(dtype, cols)), all(one.size());
        for (int row = 0; row < num_rows; ++row) {
          place_row(dtype, rows.data() + row * stored_bytes, cols, row, one.data());
        }
        place_rows(dtype, rows.data(), num_rows, cols, all.data());
        expect(one == all, std::to_string(num_rows) + " rows of " + std::to_string(cols) + " " +
                               type.name + " placed together");
      }
    }
  }
}

// Weights that lie packed in memory give what those give that are packed at load.
void test_adopted() {
  for (int seed = 0; seed < 6; ++seed) {
    Random random(seed);
    const Architecture a = tiny(random);
    for (const DType dtype : {DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      for (const std::optional<bool> in_place : {std::optional<bool>(), {true}, {false}}) {
        Decoder loaded(a, 2, "", Form::kInt8), adopted(a, 2, "", Form::kInt8);
        std::vector<Pages> packed;
        load(loaded, random, dtype);
        load(adopted, random, dtype, &packed, in_place);
        if (in_place == false) packed.clear();
        Batch batch(a);
        batch.add({1, 2, 3, 4, 5, 6}, 0, 2);
        KVCache first(loaded, KVDType::kF16, 2), second(adopted, KVDType::kF16, 2);
        expect(batch.run(loaded, first) == batch.run(adopted, second), "logits of adopted weights");
      }
    }
  }
}

void test_adopted_errors() {
  Random random(1);
  const Architecture a = tiny(random);
  Decoder d(a, 1, "", Form::kInt8);
  Pages pages(matrix_bytes(DType::kF32, a.vocab_size, a.hidden_size) + 64);
  const size_t size = matrix_bytes(DType::kQ8_0, a.vocab_size, a.hidden_size);
  const std::vector<int64_t> shape{a.vocab_size, a.hidden_size};
  const auto adopt = [&](const char* name, DType dtype, size_t start, size_t bytes) {
    d.weights().adopt(name, dtype, shape, {pages.data() + start, bytes}, std::nullopt, true,
                      d.pool());
  };
  const ErrorKind kind = ErrorKind::kMalformedCheckpoint;
  expect_error(kind, "takes", [&] { adopt("embedding.weight", DType::kQ8_0, 0, size - 1); });
  expect_error(kind, "multiple of 64", [&] { adopt("embedding.weight", DType::kQ8_0, 4, size); });
  expect_error(kind, "not part", [&] { adopt("embedding.bias", DType::kQ8_0, 0, size); });
  expect_error(kind, "blocks of 256", [&] { adopt("embedding.weight", DType::kQ4K, 0, size); });
  adopt("embedding.weight", DType::kQ8_0, 0, size);
  expect_error(kind, "twice", [&] { adopt("embedding.weight", DType::kQ8_0, 0, size); });
  expect_error(kind, "float32 alone", [&] {
    d.weights().adopt("final_norm.weight", DType::kF16, {a.hidden_size},
                      {pages.data(), static_cast<size_t>(a.hidden_size) * 2}, std::nullopt, true,
                      d.pool());
  });
}

void test_elementwise() {
  Random random(17);
  for (const int n : {1, 7, 8, 9, 31, 32, 33, 40, 127}) {
    const std::vector<float> x = normal(random, n, 4), weight = normal(random, n);
    const std::vector<float> bias = normal(random, n);
    double mean = 0, variance = 0;
    for (const float v : x) mean += v / static_cast<double>(n);
    for (const float v : x) variance += (v - mean) * (v - mean) / n;
    std::vector<float> normed, activated;
    for (const InstructionSet& isa : instruction_sets()) {
      std::vector<float> in_place = x, out(n);
      isa.kernels->layer_norm(in_place.data(), weight.data(), bias.data(), n, 1e-5f,
                              in_place.data());
      isa.kernels->gelu_tanh(x.data(), n, out.data());
      if (normed.empty()) normed = in_place, activated = out;
      const std::string label = std::string(isa.name) + ", " + std::to_string(n);
      expect(same(normed.data(), in_place.data(), n), "layer norm: " + label);
      expect(same(activated.data(), out.data(), n), "gelu: " + label);
    }
    for (int i = 0; i < n; ++i) {
      const double exact = weight[i] * (x[i] - mean) / std::sqrt(variance + 1e-5) + bias[i];
      expect(std::fabs(normed[i] - exact) < 1e-5, "layer norm of " + std::to_string(n));
      const double v = x[i], u = 0.7978845608 * (v + 0.044715 * v * v * v);
      // In this form nothing cancels where tanh is near -1.
      const double gelu = v / (1 + std::exp(-2 * u));
      expect(std::fabs(activated[i] - gelu) <= 1e-6 * std::fabs(gelu) * (2 + std::fabs(u)) + 1e-30,
             "gelu of " + std::to_string(x[i]));
    }
  }
}

void test_sampling() {
  Random random(3);
  for (const InstructionSet& isa : instruction_sets()) {
    const int n = 257;
    Sampler sampler(*isa.kernels, n);
    sampler.reserve();
    const std::vector<float> logits = normal(random, n, 3);
    const std::vector<int32_t> history = {5, 5, 9, 200, 9};
    const std::vector<int32_t> bias_ids = {3};
    const std::vector<float> bias_values = {2.5f};
    std::vector<uint32_t> allowed((n + 31) / 32);  // every third token
    for (int id = 0; id < n; id += 3) allowed[id / 32] |= uint32_t{1} << id % 32;
    std::vector<int32_t> top_ids(20);
    std::vector<float> top_logprobs(20);
    for (uint64_t seed = 0; seed < 200; ++seed) {
      const RowSampling row{.temperature = seed % 3 ? 0.9f : 0.0f,
                            .top_k = static_cast<int>(seed % 5 * 10),
                            .top_p = seed % 2 ? 0.9f : 1.0f,
                            .min_p = seed % 7 ? 0.0f : 0.05f,
                            .seed = seed,
                            .position = static_cast<int64_t>(seed * 31),
                            .repetition_penalty = 1.2f,
                            .presence_penalty = 0.5f,
                            .frequency_penalty = 0.1f,
                            .history = history,
                            .prompt_length = 2,
                            .bias_ids = bias_ids,
                            .bias_values = bias_values,
                            .allowed = seed % 4 ? nullptr : allowed.data()};
      int32_t token = -1;
      for (int again = 0; again < 2; ++again) {
        std::vector<float> work = logits;
        RowResult result{.top_ids = top_ids.data(), .top_logprobs = top_logprobs.data()};
        sampler.sample(row, work.data(), 20, result);
        expect(result.token >= 0 && result.token < n && result.logprob < 0, "a token is drawn");
        expect(again == 0 || result.token == token, "the same token again");
        expect(!row.allowed || result.token % 3 == 0, "an allowed token");
        token = result.token;
      }
    }
    std::vector<float> broken = logits;
    broken[100] = std::numeric_limits<float>::quiet_NaN();
    RowResult result;
    sampler.sample({.temperature = 1}, broken.data(), -1, result);
    expect(result.token == -1, "NaN logits give no token");
  }
  expect(uniform(1, 2) == uniform(1, 2) && uniform(1, 2) != uniform(1, 3),
         "a function of its arguments");
}

void test_errors() {
  Random random(5);
  Architecture a = tiny(random);
  a.mask = Mask::kPrefix;
  a.rope_positions = RopePositions::k2d;
  a.prefix_length = 3;
  Decoder d(a, 2, "", Form::kInt8);
  expect_error(ErrorKind::kMalformedCheckpoint, "are missing", [&] { d.weights().finish(); });
  expect_error(ErrorKind::kMalformedCheckpoint, "are missing",
               [&] { KVCache cache(d, KVDType::kF16, 4); });
  load(d, random, DType::kF32);
  KVCache cache(d, KVDType::kF16, 4);
  const auto step = [&](auto change) {
    Batch batch(a);
    batch.add({1, 2, 3}, 0, 2);
    StepInput in = batch.input();
    change(batch, in);
    std::vector<float> logits(batch.rows.size() * a.vocab_size);
    d.step(cache, in, {.logits = logits.data()});
  };
  const auto kind = ErrorKind::kInvalidParameter;
  expect_error(kind, "token_ids[1]",
               [&] { step([&](Batch& b, StepInput&) { b.ids[1] = a.vocab_size; }); });
  expect_error(kind, "token_ids[0]", [&] { step([](Batch& b, StepInput&) { b.ids[0] = -1; }); });
  expect_error(kind, "positions[2]",
               [&] { step([](Batch& b, StepInput&) { b.positions[2] = -1; }); });
  expect_error(kind, "query_lengths[0]",
               [&] { step([](Batch& b, StepInput&) { b.lengths[0] = 4; }); });
  expect_error(kind, "block_tables[0, 0]",
               [&] { step([](Batch& b, StepInput&) { b.tables[0] = 4; }); });
  expect_error(kind, "logit_rows[1]", [&] { step([](Batch& b, StepInput&) { b.rows[1] = 0; }); });
  expect_error(kind, "context_lengths[0]",
               [&] { step([](Batch& b, StepInput&) { b.context_lengths[0] = 4; }); });
  expect_error(kind, "context_lengths must",
               [&] { step([](Batch&, StepInput& in) { in.context_lengths = nullptr; }); });
  expect_error(kind, "block_positions[1]",
               [&] { step([](Batch& b, StepInput&) { b.block_positions[1] = -1; }); });
  const int32_t beyond = 65;
  expect_error(kind, "kv_lengths[0]",
               [&] { step([&](Batch&, StepInput& in) { in.kv_lengths = &beyond; }); });
  expect_error(ErrorKind::kUnknownInstructionSet, "scalar", [] { find_instruction_set("mmx"); });
  Architecture other = a;
  other.residual = Residual::kInput;
  other.residual_scale = 2;
  expect_error(ErrorKind::kUnsupportedArchitecture, "residual_scale", [&] { other.check(); });
}

// Steps from several threads take turns.
void test_callers() {
  Random random(13);
  const Architecture a = tiny(random);
  Decoder d(a, 2, "", Form::kInt8);
  load(d, random, DType::kQ8_0);
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      KVCache cache(d, KVDType::kF16, 2);
      Batch batch(a);
      batch.add({1, 2, 3, 4, 5, 6}, 0, 2);
      const std::vector<float> expected = batch.run(d, cache);
      for (int n = 0; n < 20; ++n) {
        expect(batch.run(d, cache) == expected, "steps from several threads");
      }
    });
  }
  for (std::thread& t : callers) t.join();
}

// No thread leaves a barrier before all have come to it: in one group of them and in several.
void test_barrier() {
  for (const int threads : {1, 2, 8, 9, 19}) {
    ThreadPool pool(threads);
    std::atomic<int> arrived{0}, early{0};
    pool.run([&](int thread) {
      for (int phase = 1; phase <= 50; ++phase) {
        arrived.fetch_add(1);
        pool.barrier(thread);
        if (arrived.load() < phase * threads) early.fetch_add(1);
        pool.barrier(thread);
      }
    });
    expect(early == 0 && arrived == 50 * threads, "barrier of " + std::to_string(threads));
  }
}

}  // namespace

int main() {
  test_half();
  test_steps();
  test_adapters();
  test_adapter_errors();
  test_packing();
  test_place_rows();
  test_adopted();
  test_adopted_errors();
  test_long_context();
  test_elementwise();
  test_sampling();
  test_errors();
  test_callers();
  test_barrier();
  std::printf(failures ? "%d checks failed\n" : "all core tests passed\n", failures);
  return failures ? 1 : 0;
}
