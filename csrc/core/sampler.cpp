#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/kernels.h"

namespace glimmer {
namespace {

// Likelier first; ties go to the lower id, so that a choice never depends on how a sort works.
struct Likelier {
  const float* score;
  bool operator()(int32_t a, int32_t b) const {
    return score[a] > score[b] || (score[a] == score[b] && a < b);
  }
};

int32_t argmax(const float* x, int n) {
  const float* largest = std::max_element(x, x + n);  // the first of equals
  return *largest > -std::numeric_limits<float>::infinity() ? static_cast<int32_t>(largest - x)
                                                            : -1;
}

bool penalises(const RowSampling& row) {
  return row.repetition_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0;
}

bool usable(const float* x, int n) {  // -infinity is allowed: a token that is ruled out
  bool bad = false;
  for (int i = 0; i < n; ++i) bad |= !(x[i] < std::numeric_limits<float>::infinity());
  return !bad;
}

}  // namespace

double uniform(uint64_t seed, int64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
        static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  const uint64_t bits = (static_cast<uint64_t>(c[1]) << 32 | c[0]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

Sampler::Sampler(const Kernels& kernels, int vocab_size)
    : kernels_(kernels), vocab_size_(vocab_size) {}

bool Sampler::needs_room(const RowSampling& row) { return row.temperature != 0 || penalises(row); }

void Sampler::reserve() {
  probabilities_.resize(vocab_size_);
  logprobs_.resize(vocab_size_);
  counts_.resize(vocab_size_);
  ids_.resize(vocab_size_);
}

void Sampler::sample(const RowSampling& row, float* logits, int num_logprobs, RowResult& result) {
  if (!usable(logits, vocab_size_)) return;
  if (num_logprobs >= 0) log_probabilities(logits, num_logprobs, result);
  if (row.allowed) rule_out(row.allowed, logits);
  if (!row.bias_ids.empty() || penalises(row)) {
    for (size_t i = 0; i < row.bias_ids.size(); ++i) logits[row.bias_ids[i]] += row.bias_values[i];
    penalise(row, logits);
    if (!usable(logits, vocab_size_)) return;  // these may overflow as well
  }
  result.token = row.temperature == 0 ? argmax(logits, vocab_size_) : draw(row, logits);
  if (num_logprobs >= 0 && result.token >= 0) result.logprob = logprobs_[result.token];
}

void Sampler::log_probabilities(const float* logits, int num_logprobs, RowResult& result) {
  const float largest = *std::max_element(logits, logits + vocab_size_);
  logprobs_.assign(logits, logits + vocab_size_);
  const float log_sum = std::log(kernels_.exp_shifted(logprobs_.data(), vocab_size_, largest));
  for (int i = 0; i < vocab_size_; ++i) logprobs_[i] = logits[i] - largest - log_sum;
  const auto end = ids_.begin() + std::min(num_logprobs, vocab_size_);
  std::iota(ids_.begin(), ids_.end(), 0);
  std::partial_sort(ids_.begin(), end, ids_.end(), Likelier{logits});
  for (auto it = ids_.begin(); it != end; ++it) {
    result.top_ids[it - ids_.begin()] = *it;
    result.top_logprobs[it - ids_.begin()] = logprobs_[*it];
  }
}

void Sampler::rule_out(const uint32_t* allowed, float* logits) const {
  for (int first = 0; first < vocab_size_; first += 32) {
    const uint32_t bits = allowed[first / 32];
    if (bits == ~uint32_t{0}) continue;
    const int n = std::min(32, vocab_size_ - first);
    for (int i = 0; i < n; ++i) {
      if (!(bits >> i & 1)) logits[first + i] = -std::numeric_limits<float>::infinity();
    }
  }
}

void Sampler::penalise(const RowSampling& row, float* logits) {
  if (!penalises(row)) return;
  // A count of -1 marks a token that only the prompt holds.
  const auto prompt = row.history.first(row.prompt_length),
             answer = row.history.subspan(row.prompt_length);
  for (const int32_t id : prompt) counts_[id] = -1;
  for (const int32_t id : answer) counts_[id] = std::max(counts_[id], 0) + 1;
  for (const int32_t id : row.history) {
    const int32_t count = counts_[id];
    if (count == 0) continue;  // already done
    counts_[id] = 0;
    float& x = logits[id];
    x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    if (count > 0) x -= row.presence_penalty + row.frequency_penalty * static_cast<float>(count);
  }
}

int32_t Sampler::draw(const RowSampling& row, const float* logits) {
  // p holds probabilities relative to the likeliest token's.
  float* const p = probabilities_.data();
  const float largest = *std::max_element(logits, logits + vocab_size_);
  if (largest == -std::numeric_limits<float>::infinity()) return -1;
  for (int i = 0; i < vocab_size_; ++i) p[i] = (logits[i] - largest) / row.temperature;
  kernels_.exp_shifted(p, vocab_size_, 0.0f);

  int n = 0;
  for (int i = 0; i < vocab_size_; ++i) {
    ids_[n] = i;
    n += p[i] >= row.min_p && logits[i] > -std::numeric_limits<float>::infinity();
  }
  if (n == 0) return -1;
  const Likelier likelier{p};
  if (row.top_k > 0 && row.top_k < n) {
    std::nth_element(ids_.begin(), ids_.begin() + row.top_k - 1, ids_.begin() + n, likelier);
    n = row.top_k;
    std::sort(ids_.begin(), ids_.begin() + n);  // the sum below must not depend on nth_element
  }
  double total = 0;
  for (int i = 0; i < n; ++i) total += p[ids_[i]];
  if (row.top_p < 1) {
    // A token below its even share of what may be left out cannot be in the nucleus: all such
    // tokens together fall short of it. Half of that leaves room for rounding; few remain to sort.
    const double floor = total * (1.0 - row.top_p) / n / 2;
    const auto end =
        std::partition(ids_.begin(), ids_.begin() + n, [&](int32_t id) { return p[id] >= floor; });
    n = static_cast<int>(end - ids_.begin());
    std::sort(ids_.begin(), end, likelier);
    const double wanted = total * row.top_p;
    total = 0;
    for (int i = 0; i < n; ++i) {
      total += p[ids_[i]];
      if (total >= wanted) n = i + 1;
    }
  }
  double left = uniform(row.seed, row.position) * total;
  for (int i = 0; i < n; ++i) {
    left -= p[ids_[i]];
    if (left < 0) return ids_[i];
  }
  return ids_[n - 1];  // rounding ate the last of it
}

}  // namespace glimmer
