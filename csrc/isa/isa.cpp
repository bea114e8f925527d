#include "isa/isa.h"

#include "core/error.h"

namespace glimmer {

const Kernels& scalar_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512vnni_kernels();
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found{{"scalar", &scalar_kernels()}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
      found.push_back({"avx2", &avx2_kernels()});
      if (__builtin_cpu_supports("avxvnni")) found.push_back({"avxvnni", &avxvnni_kernels()});
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512vnni")) {
        found.push_back({"avx512vnni", &avx512vnni_kernels()});
      }
    }
#endif
    return found;
  }();
  return sets;
}

const InstructionSet& find_instruction_set(std::string_view name) {
  std::string allowed;
  for (const InstructionSet& set : instruction_sets()) {
    if (name == set.name) return set;
    allowed += (allowed.empty() ? "" : ", ") + std::string(set.name);
  }
  if (name.empty()) return instruction_sets().back();
  throw Error(ErrorKind::kUnknownInstructionSet,
              "Instruction set \"" + std::string(name) +
                  "\" is not known or not supported by this processor; available: " + allowed +
                  ". Unset GLIMMER_ISA to use the best one.");
}

}  // namespace glimmer
