// What the core throws. The bindings turn each kind into the Python error of the same name.
#pragma once

#include <stdexcept>
#include <string>

namespace glimmer {

enum class ErrorKind {
  kInvalidParameter,
  kMalformedCheckpoint,
  kUnsupportedTensorType,
  kUnsupportedArchitecture,
  kUnknownInstructionSet,
  kOutOfMemory,
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace glimmer
