"""What whoever runs a network offers to those above: this process's engine, or one elsewhere."""

from __future__ import annotations

from typing import Protocol

from glimmer.engine.engine import EngineStats, StepOutput
from glimmer.engine.request import Request


class TokenEngine(Protocol):
    """Token ids in, token ids out. One thread at a time, but for ``wake``."""

    @property
    def num_unfinished(self) -> int: ...

    @property
    def stats(self) -> EngineStats: ...

    def add_request(self, request: Request) -> None:
        """Take a request, or refuse it.

        Raises: as ``Engine.add_request``; and EngineUnavailableError, where nobody runs it.
        """
        ...

    def is_starting(self, request_id: int) -> bool:
        """Whether a request that was taken may still be refused: nobody has begun with it."""
        ...

    def abort(self, request_id: int) -> None:
        """Drop a request; one that has finished already is no error."""
        ...

    def step(self) -> list[StepOutput]:
        """What has come since the last step. With a request unfinished it may wait, until something
        comes or ``wake`` is called; no output of an aborted request comes."""
        ...

    def wake(self) -> None:
        """``step`` is not to wait any longer, or not the next time. From any thread."""
        ...

    def close(self) -> None:
        """Let everything go; nothing is asked of it afterwards."""
        ...
