// The Python module: conversions only.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/decoder.h"
#include "core/error.h"
#include "core/lora.h"
#include "core/memory.h"
#include "core/packing.h"
#include "core/sampler.h"
#include "isa/isa.h"
#include "kernels/kernels.h"

namespace nb = nanobind;

namespace glimmer {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutVector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutMatrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix2D = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using PrefixRows = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const char* error_class(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidParameter:
      return "InvalidParameterError";
    case ErrorKind::kMalformedCheckpoint:
      return "MalformedCheckpointError";
    case ErrorKind::kUnsupportedTensorType:
      return "UnsupportedTensorTypeError";
    case ErrorKind::kUnsupportedArchitecture:
      return "UnsupportedArchitectureError";
    case ErrorKind::kUnknownInstructionSet:
      return "UnknownInstructionSetError";
    case ErrorKind::kOutOfMemory:
      return "OutOfMemoryError";
  }
  return "GlimmerError";
}

std::optional<DType> optional_dtype(const std::optional<std::string>& name) {
  return name ? std::optional(dtype_from_name(*name)) : std::nullopt;
}

// Arrays of one value per logit row.
struct Sampling {
  Vector<float> temperature;
  Vector<int32_t> top_k;
  Vector<float> top_p, min_p;
  Vector<uint64_t> seed;
  Vector<int64_t> position;
  Vector<float> repetition_penalty, presence_penalty, frequency_penalty;
  Vector<int32_t> history, history_offsets, prompt_lengths;
  Vector<int32_t> bias_ids;
  Vector<float> bias_values;
  Vector<int32_t> bias_offsets;
  Tables allowed;                // [masks][words], of 32 tokens each
  Vector<int32_t> allowed_rows;  // the mask of each row; -1 for none

  template <class T>
  static std::span<const T> piece(const Vector<T>& flat, const Vector<int32_t>& offsets, size_t i) {
    return {flat.data() + offsets(i), flat.data() + offsets(i + 1)};
  }
  const uint32_t* allowed_words(int mask) const {
    return reinterpret_cast<const uint32_t*>(allowed.data() + mask * allowed.shape(1));
  }
  RowSampling row(size_t i) const {
    return {.temperature = temperature(i),
            .top_k = top_k(i),
            .top_p = top_p(i),
            .min_p = min_p(i),
            .seed = seed(i),
            .position = position(i),
            .repetition_penalty = repetition_penalty(i),
            .presence_penalty = presence_penalty(i),
            .frequency_penalty = frequency_penalty(i),
            .history = piece(history, history_offsets, i),
            .prompt_length = prompt_lengths(i),
            .bias_ids = piece(bias_ids, bias_offsets, i),
            .bias_values = piece(bias_values, bias_offsets, i),
            .allowed = allowed_rows(i) < 0 ? nullptr : allowed_words(allowed_rows(i))};
  }
};

void step(Decoder& decoder, KVCache& cache, Vector<int32_t> token_ids, Vector<int32_t> positions,
          std::optional<Vector<int32_t>> block_positions, Vector<int32_t> query_lengths,
          Vector<int32_t> kv_lengths, std::optional<Vector<int32_t>> context_lengths,
          Tables block_tables, const std::vector<const Lora*>& loras,
          const std::vector<const KVPrefix*>& prefixes, Vector<int32_t> logit_rows,
          std::optional<Sampling> sampling, int num_logprobs,
          std::optional<OutMatrix<float>> logits, std::optional<OutMatrix<float>> hidden,
          OutVector<int32_t> out_ids, OutVector<float> out_logprobs, OutMatrix<int32_t> out_top_ids,
          OutMatrix<float> out_top_logprobs) {
  std::vector<RowSampling> rows;
  for (size_t i = 0; sampling && i < logit_rows.shape(0); ++i) rows.push_back(sampling->row(i));
  const StepInput input{.num_tokens = static_cast<int>(token_ids.shape(0)),
                        .token_ids = token_ids.data(),
                        .positions = positions.data(),
                        .block_positions = block_positions ? block_positions->data() : nullptr,
                        .num_sequences = static_cast<int>(query_lengths.shape(0)),
                        .query_lengths = query_lengths.data(),
                        .kv_lengths = kv_lengths.data(),
                        .context_lengths = context_lengths ? context_lengths->data() : nullptr,
                        .max_blocks = static_cast<int>(block_tables.shape(1)),
                        .block_tables = block_tables.data(),
                        .loras = loras.empty() ? nullptr : loras.data(),
                        .prefixes = prefixes.empty() ? nullptr : prefixes.data(),
                        .num_logit_rows = static_cast<int>(logit_rows.shape(0)),
                        .logit_rows = logit_rows.data(),
                        .sampling = sampling ? rows.data() : nullptr,
                        .num_logprobs = num_logprobs};
  const StepOutput output{.logits = logits ? logits->data() : nullptr,
                          .hidden = hidden ? hidden->data() : nullptr,
                          .token_ids = out_ids.data(),
                          .logprobs = out_logprobs.data(),
                          .top_ids = out_top_ids.data(),
                          .top_logprobs = out_top_logprobs.data()};
  const nb::gil_scoped_release released;
  decoder.step(cache, input, output);
}

// The choice of tokens after logits that were computed elsewhere, [rows][vocab_size]; they are
// overwritten.
void sample(const std::string& isa, OutMatrix<float> logits, const Sampling& sampling,
            int num_logprobs, OutVector<int32_t> out_ids, OutVector<float> out_logprobs,
            OutMatrix<int32_t> out_top_ids, OutMatrix<float> out_top_logprobs) {
  const size_t num_rows = logits.shape(0), vocab_size = logits.shape(1);
  std::vector<RowSampling> rows;
  for (size_t i = 0; i < num_rows; ++i) rows.push_back(sampling.row(i));
  const nb::gil_scoped_release released;
  Sampler sampler(*find_instruction_set(isa).kernels, static_cast<int>(vocab_size));
  sampler.reserve();
  const size_t width = static_cast<size_t>(std::max(num_logprobs, 0));
  for (size_t i = 0; i < num_rows; ++i) {
    RowResult result{.top_ids = out_top_ids.data() + i * width,
                     .top_logprobs = out_top_logprobs.data() + i * width};
    sampler.sample(rows[i], logits.data() + i * vocab_size, num_logprobs, result);
    out_ids.data()[i] = result.token;
    out_logprobs.data()[i] = result.logprob;
  }
}

}  // namespace
}  // namespace glimmer

NB_MODULE(_core, m) {
  using namespace glimmer;

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      PyErr_SetString(nb::module_::import_("glimmer.errors").attr(error_class(e.kind())).ptr(),
                      e.what());
    }
  });

  m.attr("BLOCK_SIZE") = kPageTokens;
  m.attr("PACKED_ALIGNMENT") = kAlignment;
  m.attr("PACKED_LAYOUT") = kPackedLayout;
  m.def("trim_heap", &trim_heap);
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const InstructionSet& set : instruction_sets()) names.push_back(set.name);
    return names;
  });
  m.def("find_instruction_set",
        [](const std::string& name) { return find_instruction_set(name).name; });
  m.def("dtypes", [] {
    std::vector<std::string> names;
    for (const DTypeInfo& type : kDTypes) names.push_back(type.name);
    return names;
  });

  nb::enum_<Form>(m, "Form").value("int8", Form::kInt8).value("int16", Form::kInt16);
  nb::enum_<KVDType>(m, "KVDType")
      .value("float32", KVDType::kF32)
      .value("float16", KVDType::kF16)
      .value("int8", KVDType::kI8);
  nb::enum_<Norm>(m, "Norm").value("rms", Norm::kRms).value("layer", Norm::kLayer);
  nb::enum_<NormPlace>(m, "NormPlace")
      .value("pre", NormPlace::kPre)
      .value("sandwich", NormPlace::kSandwich);
  nb::enum_<Residual>(m, "Residual")
      .value("input", Residual::kInput)
      .value("normed", Residual::kNormed);
  nb::enum_<Mask>(m, "Mask").value("causal", Mask::kCausal).value("prefix", Mask::kPrefix);
  nb::enum_<Mlp>(m, "Mlp").value("swiglu", Mlp::kSwiGlu).value("gelu_tanh", Mlp::kGeluTanh);
  nb::enum_<RopePairing>(m, "RopePairing")
      .value("interleaved", RopePairing::kInterleaved)
      .value("half", RopePairing::kHalf);
  nb::enum_<RopePositions>(m, "RopeDimensions")
      .value("one", RopePositions::k1d)
      .value("two", RopePositions::k2d);

  nb::class_<Experts>(m, "Experts")
      .def(nb::init<>())
      .def_rw("num_experts", &Experts::num_experts)
      .def_rw("num_experts_per_token", &Experts::num_experts_per_token)
      .def_rw("num_shared_experts", &Experts::num_shared_experts)
      .def_rw("intermediate_size", &Experts::intermediate_size)
      .def_rw("num_dense_layers", &Experts::num_dense_layers)
      .def_rw("num_groups", &Experts::num_groups)
      .def_rw("num_groups_per_token", &Experts::num_groups_per_token)
      .def_rw("normalize_weights", &Experts::normalize_weights)
      .def_rw("routed_scale", &Experts::routed_scale);
  nb::class_<Architecture>(m, "Architecture")
      .def(nb::init<>())
      .def("check", &Architecture::check)
      .def_rw("vocab_size", &Architecture::vocab_size)
      .def_rw("hidden_size", &Architecture::hidden_size)
      .def_rw("num_layers", &Architecture::num_layers)
      .def_rw("num_heads", &Architecture::num_heads)
      .def_rw("num_kv_heads", &Architecture::num_kv_heads)
      .def_rw("head_dim", &Architecture::head_dim)
      .def_rw("intermediate_size", &Architecture::intermediate_size)
      .def_rw("norm", &Architecture::norm)
      .def_rw("norm_place", &Architecture::norm_place)
      .def_rw("norm_eps", &Architecture::norm_eps)
      .def_rw("residual", &Architecture::residual)
      .def_rw("residual_scale", &Architecture::residual_scale)
      .def_rw("rope_dims", &Architecture::rope_dims)
      .def_rw("rope_base", &Architecture::rope_base)
      .def_rw("rope_linear_scale", &Architecture::rope_linear_scale)
      .def_rw("rope_pairing", &Architecture::rope_pairing)
      .def_rw("rope_positions", &Architecture::rope_positions)
      .def_rw("rope_half_frequencies", &Architecture::rope_half_frequencies)
      .def_rw("mask", &Architecture::mask)
      .def_rw("mlp", &Architecture::mlp)
      .def_rw("qkv_bias", &Architecture::qkv_bias)
      .def_rw("attention_out_bias", &Architecture::attention_out_bias)
      .def_rw("mlp_bias", &Architecture::mlp_bias)
      .def_rw("qk_norm", &Architecture::qk_norm)
      .def_rw("experts", &Architecture::experts, nb::arg().none())
      .def_rw("prefix_length", &Architecture::prefix_length)
      .def_rw("tied_head", &Architecture::tied_head);

  nb::class_<KVCache>(m, "KVCache")
      .def("__init__", [](KVCache* self, const Decoder& decoder, KVDType dtype,
                          int num_blocks) { new (self) KVCache(decoder, dtype, num_blocks); })
      .def("copy_block", &KVCache::copy_block)
      .def_prop_ro("num_blocks", &KVCache::num_blocks)
      .def_prop_ro("size_bytes", &KVCache::size_bytes);
  m.def("kv_block_bytes", &KVBlocks::block_bytes);
  nb::class_<KVPrefix>(m, "KVPrefix")
      .def(
          "__init__",
          [](KVPrefix* self, const Decoder& decoder, KVDType dtype, PrefixRows rows) {
            new (self) KVPrefix(decoder, dtype, rows.data(), static_cast<int>(rows.shape(2)));
          },
          // [num_layers][2][length][kv_width]: keys, then values of a layer
          nb::arg("decoder"), nb::arg("dtype"), nb::arg("rows"))
      .def_prop_ro("length", &KVPrefix::length)
      .def_prop_ro("size_bytes", &KVPrefix::size_bytes);
  nb::class_<Lora>(m, "Lora")
      .def(nb::init<const Architecture&>())
      .def(
          "add",
          [](Lora& self, const std::string& name, float scale, Matrix2D<float> a, Matrix2D<float> b,
             const std::string& shared_a) {
            const nb::gil_scoped_release released;
            self.add(name, static_cast<int>(b.shape(1)), scale, {a.data(), a.size()},
                     {b.data(), b.size()}, shared_a);
          },
          nb::arg("name"), nb::arg("scale"), nb::arg("a"), nb::arg("b"), nb::arg("shared_a"))
      .def_prop_ro("size_bytes", &Lora::size_bytes);

  nb::class_<Sampling>(m, "Sampling")
      .def(nb::init<Vector<float>, Vector<int32_t>, Vector<float>, Vector<float>, Vector<uint64_t>,
                    Vector<int64_t>, Vector<float>, Vector<float>, Vector<float>, Vector<int32_t>,
                    Vector<int32_t>, Vector<int32_t>, Vector<int32_t>, Vector<float>,
                    Vector<int32_t>, Tables, Vector<int32_t>>());

  m.def("sample", &sample, nb::arg("isa"), nb::arg("logits"), nb::arg("sampling"),
        nb::arg("num_logprobs"), nb::arg("out_ids"), nb::arg("out_logprobs"),
        nb::arg("out_top_ids"), nb::arg("out_top_logprobs"));

  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<const Architecture&, int, const std::string&, Form, const std::vector<int>&>())
      .def_prop_ro("isa", [](const Decoder& d) { return d.isa().name; })
      .def_prop_ro("num_threads", [](Decoder& d) { return d.pool().num_threads(); })
      .def_prop_ro("packed_bytes", [](Decoder& d) { return d.weights().packed_bytes(); })
      .def("load",
           [](Decoder& d, const std::string& name, const std::string& dtype,
              const std::vector<int64_t>& shape, Vector<uint8_t> data,
              const std::optional<std::string>& target) {
             const DType stored = dtype_from_name(dtype);
             const std::optional<DType> kept = optional_dtype(target);
             const nb::gil_scoped_release released;
             d.weights().load(name, stored, shape, {data.data(), data.size()}, kept, d.pool());
           })
      .def("kept",
           [](const Decoder& d, const std::string& name, const std::string& dtype,
              const std::vector<int64_t>& shape, const std::optional<std::string>& target) {
             const Weights::Kept kept =
                 d.weights().kept(name, dtype_from_name(dtype), shape, optional_dtype(target));
             return std::pair<std::string, size_t>(info(kept.dtype).name, kept.bytes);
           })
      .def("pack",
           [](Decoder& d, const std::string& name, const std::string& dtype,
              const std::vector<int64_t>& shape, Vector<uint8_t> data,
              const std::optional<std::string>& target, OutVector<uint8_t> out) {
             const DType stored = dtype_from_name(dtype);
             const std::optional<DType> kept = optional_dtype(target);
             const nb::gil_scoped_release released;
             d.weights().pack(name, stored, shape, {data.data(), data.size()}, kept,
                              {out.data(), out.size()}, d.pool());
           })
      .def("adopt",
           [](Decoder& d, const std::string& name, const std::string& dtype,
              const std::vector<int64_t>& shape, Vector<uint8_t> packed,
              const std::optional<std::string>& target, std::optional<bool> in_place) {
             const DType type = dtype_from_name(dtype);
             const std::optional<DType> kept = optional_dtype(target);
             const nb::gil_scoped_release released;
             return d.weights().adopt(name, type, shape, {packed.data(), packed.size()}, kept,
                                      in_place, d.pool());
           })
      .def("finish", [](Decoder& d) { d.weights().finish(); })
      .def("step", &step, nb::arg("cache"), nb::arg("token_ids"), nb::arg("positions"),
           nb::arg("block_positions").none(), nb::arg("query_lengths"), nb::arg("kv_lengths"),
           nb::arg("context_lengths").none(), nb::arg("block_tables"), nb::arg("loras"),
           nb::arg("prefixes"), nb::arg("logit_rows"), nb::arg("sampling").none(),
           nb::arg("num_logprobs"), nb::arg("logits").none(), nb::arg("hidden").none(),
           nb::arg("out_ids"), nb::arg("out_logprobs"), nb::arg("out_top_ids"),
           nb::arg("out_top_logprobs"));
}
