"""A packed folder as a network's weights: they lie there as the engine reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from glimmer.checkpoints import Checkpoint, PackedCheckpoint
from glimmer.errors import InvalidParameterError, MalformedCheckpointError
from glimmer.model_source import ModelSource
from glimmer.native import NativeModel


class PackedSource(ModelSource):
    """Raises as ``ModelSource``."""

    checkpoint: PackedCheckpoint

    def _find_weights(self) -> None:
        path, tensors = self.checkpoint.path, self.checkpoint.tensors
        if wrong := self._shapes.keys() ^ tensors.keys():
            name = min(wrong)
            what = "lacks" if name in self._shapes else "has, beyond its network,"
            raise MalformedCheckpointError(
                f"{path} {what} the weight {name!r:.80}; the file is damaged: convert the model "
                "again"
            )
        for name, shape in self._shapes.items():
            if tensors[name].shape != shape:
                raise MalformedCheckpointError(
                    f"{path}: weight {name!r} has shape {list(tensors[name].shape)}, but the "
                    f"network needs {list(shape)}; the file is damaged: convert the model again"
                )

    @property
    def dtypes(self) -> Mapping[str, str]:
        return {name: tensor.dtype for name, tensor in self.checkpoint.tensors.items()}

    @property
    def unused_tensors(self) -> frozenset[str]:
        return frozenset()

    def load_into(self, native: NativeModel, name: str, target: str | None) -> None:
        """A weight stays in the mapped file if the system keeps it in large pages there."""
        tensor = self.checkpoint.tensors[name]
        if not native.adopt(name, tensor.dtype, tensor.shape, self.checkpoint.read(name), target):
            self.release(name)

    def read(self, name: str) -> NoReturn:
        raise self.refusal(self.checkpoint)

    def release(self, name: str) -> None:
        self.checkpoint.release(name)

    @staticmethod
    def refusal(checkpoint: PackedCheckpoint) -> InvalidParameterError:
        """Why a packed model is not written in another form."""
        source = f", {checkpoint.made_from}" if checkpoint.made_from else ""
        return InvalidParameterError(
            f"{checkpoint.path} is packed for the engine and for nothing else. Convert the model "
            f"that it was made of{source}."
        )


def open_source(checkpoint: Checkpoint, family: str | None = None) -> ModelSource:
    """The weights of any checkpoint; raises as ``ModelSource``."""
    kind = PackedSource if isinstance(checkpoint, PackedCheckpoint) else ModelSource
    return kind(checkpoint, family)
