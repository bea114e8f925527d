// Which instruction set runs, chosen at run time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace glimmer {

struct Kernels;

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

// Those that this build holds and this processor runs; the first is "scalar", the last the best.
const std::vector<InstructionSet>& instruction_sets();

// The named one; the best when the name is empty. Throws Error(kUnknownInstructionSet).
const InstructionSet& find_instruction_set(std::string_view name);

}  // namespace glimmer
