"""What ``with`` needs of a class that has a ``close``."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class ClosesAtExit:
    """Closed at the end of ``with``."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
