"""Every error that Glimmer raises on purpose.

    GlimmerError
    ├── UsageError                      what was asked for is not allowed        (exit code 2)
    │   ├── InvalidParameterError       a value is out of its range              (also a ValueError)
    │   ├── PromptTooLongError          the prompt leaves no room in the context
    │   ├── ModelNotFoundError          no such file, folder or release
    │   ├── AdapterNotFoundError        a request names an adapter that is not loaded
    │   ├── MissingExtraError           a command needs packages that are not installed
    │   └── UnknownInstructionSetError  GLIMMER_ISA names something we do not have
    ├── CheckpointError                 the model's files are at fault           (exit code 1)
    │   ├── UnknownFormatError          not a checkpoint format we read
    │   ├── MalformedCheckpointError    truncated, overlapping, contradictory ...
    │   ├── UnsafeCheckpointError       a file asks to run code
    │   ├── UnsupportedTensorTypeError  a tensor is stored in a type we do not read
    │   ├── UnknownFamilyError          no family, or more than one, recognises the model
    │   └── UnsupportedArchitectureError  the network needs a choice that is not built
    ├── TokenizerError                  no tokenizer, or a broken one            (exit code 1)
    ├── TrainingDataError               records of training data are broken      (exit code 1)
    ├── DownloadError                   a hub does not give a model, or gives another one
    ├── OutputError                     a file could not be written: disk full, no right
    ├── OutOfMemoryError                weights or KV cache do not fit           (exit code 1)
    ├── QueueFullError                  too many requests wait already           (exit code 1)
    ├── EngineUnavailableError          no engine elsewhere answers              (exit code 1)
    ├── GenerationError                 the model produced no usable logits      (exit code 1)
    └── TrainingError                   a training run cannot go on              (exit code 1)

A message says what was wrong, what was found, what is allowed and what to do.
"""

from __future__ import annotations


class GlimmerError(Exception):
    """Base of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(GlimmerError):
    exit_code = 2


class InvalidParameterError(UsageError, ValueError):
    pass


class PromptTooLongError(UsageError):
    pass


class ModelNotFoundError(UsageError):
    pass


class AdapterNotFoundError(UsageError):
    pass


class MissingExtraError(UsageError):
    @classmethod
    def of(cls, package: str | None) -> MissingExtraError:
        """The error for a package of the extra "train" that cannot be imported."""
        return cls(
            f"This needs {package or 'a package'}, which is not installed. Install the training "
            "side: pip install 'glimmer-lm[train]'"
        )


class UnknownInstructionSetError(UsageError):
    pass


class CheckpointError(GlimmerError):
    pass


class UnknownFormatError(CheckpointError):
    pass


class MalformedCheckpointError(CheckpointError):
    pass


class UnsafeCheckpointError(CheckpointError):
    pass


class UnsupportedTensorTypeError(CheckpointError):
    pass


class UnknownFamilyError(CheckpointError):
    pass


class UnsupportedArchitectureError(CheckpointError):
    pass


class TokenizerError(GlimmerError):
    pass


class TrainingDataError(GlimmerError):
    pass


class DownloadError(GlimmerError):
    pass


class OutputError(GlimmerError):
    pass


class OutOfMemoryError(GlimmerError):
    pass


class QueueFullError(GlimmerError):
    pass


class EngineUnavailableError(GlimmerError):
    pass


class GenerationError(GlimmerError):
    pass


class TrainingError(GlimmerError):
    pass
