"""Several servers of one model: which one gets a request, and which are well."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection, Sequence

import httpx

from glimmer.engine import BackendStats
from glimmer.errors import EngineUnavailableError
from glimmer.vllm.backend import Backend

_LOG = logging.getLogger("glimmer.server")


class Backends:
    """Used in one event loop, but for ``stats`` and ``any_up``."""

    def __init__(self, backends: Sequence[Backend], model: str, client: httpx.AsyncClient) -> None:
        """``model`` is the name under which they serve it."""
        self._all = list(backends)
        self._model = model
        self._client = client
        self._clock = itertools.count(1)

    @property
    def stats(self) -> tuple[BackendStats, ...]:
        return tuple(BackendStats(b.name, b.is_up, b.num_running) for b in self._all)

    @property
    def any_up(self) -> bool:
        return any(b.is_up for b in self._all)

    @property
    def max_model_len(self) -> int | None:
        """The longest that all take which are up."""
        lengths = [b.served.max_model_len for b in self._all if b.served is not None]
        return min((length for length in lengths if length is not None), default=None)

    @property
    def problems(self) -> str:
        return "; ".join(f"{b.name}: {b.problem}" for b in self._all if not b.is_up)

    def choose(self, tried: Collection[Backend] = ()) -> Backend:
        """The one with the fewest requests, of equals the one unused for longest.

        Raises:
            EngineUnavailableError: none is up that was not tried.
        """
        free = [b for b in self._all if b.is_up and b not in tried]
        if not free:
            raise no_engine()
        chosen = min(free, key=lambda b: (b.num_running, b.last_used))
        chosen.last_used = next(self._clock)
        return chosen

    async def check(self, timeout_s: float) -> None:
        """Ask all of them how they are."""
        await asyncio.gather(*(b.check(self._client, self._model, timeout_s) for b in self._all))

    async def watch(self, interval_s: float, timeout_s: float) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.check(timeout_s)
            except Exception:  # a mistake of ours: the next check is made all the same
                _LOG.exception("a health check has failed")


def no_engine() -> EngineUnavailableError:
    return EngineUnavailableError(
        "No engine that runs this model answers at present. Try again in a moment."
    )
