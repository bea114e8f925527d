"""The models of a server: loaded when they are needed, within a budget of memory."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from glimmer.async_llm import AsyncLLM
from glimmer.errors import GlimmerError, OutOfMemoryError
from glimmer.native import available_memory, trim_heap
from glimmer.server.config import ModelConfig
from glimmer.server.engines import is_in_main_memory, open_llm, weights_bytes
from glimmer.server.errors import ApiError
from glimmer.session import parse_bytes

_LOG = logging.getLogger("glimmer.server")
_BUDGET_SHARE = 0.9
_LEAST_KV_BYTES = 256 << 20
# A load takes as long as the disk; the client comes again.
_RETRY_LOADING_S = 5.0


@dataclass(slots=True)
class _Slot:
    config: ModelConfig
    created: int
    """Seconds since 1970: when it became known to this server."""
    llm: AsyncLLM | None = None
    is_in_main_memory: bool = True
    """What others take is not of the budget."""
    size_bytes: int = 0
    """What it takes of the budget, or is expected to take."""
    num_users: int = 0
    last_used: int = 0
    load: asyncio.Task[None] | None = None
    """While it is loaded."""


class ModelPool:
    """Gives out models by name. What does not fit beside a model that is asked for, and is not in
    use, is unloaded, the one unused for longest first."""

    def __init__(
        self, models: Sequence[ModelConfig], aliases: Mapping[str, str], memory: str | None
    ) -> None:
        now = int(time.time())
        self._slots = {config.name: _Slot(config, now) for config in models}
        self._aliases = dict(aliases)
        self._budget = None if memory is None else parse_bytes(memory)
        self._is_limited = memory is not None
        self._clock = itertools.count(1)
        self._loading = asyncio.Lock()
        self._is_started = False
        self._is_closing = False

    @property
    def is_ready(self) -> bool:
        """Whether the first model has been loaded."""
        return self._is_started

    @property
    def default_name(self) -> str:
        return next(iter(self._slots))

    def names(self) -> list[tuple[str, int]]:
        """What clients may call the models, with the time each became known: their own names, those
        with an adapter ("model:adapter"), then aliases."""
        slots = self._slots
        own = [(name, slot.created) for name, slot in slots.items()]
        own += [(f"{n}:{a}", slot.created) for n, slot in slots.items() for a in _adapters(slot)]
        return own + [(alias, slots[to].created) for alias, to in self._aliases.items()]

    def split(self, name: str) -> tuple[str, str | None]:
        """What a client calls a model, as the model's name or alias and the adapter's, if any."""
        if name in self._slots or name in self._aliases:
            return name, None
        # By the names there are and not by colons, which an adapter's name may hold as well.
        for model in (*self._slots, *self._aliases):
            adapter = name.removeprefix(f"{model}:")
            if adapter != name and adapter in _adapters(
                self._slots[self._aliases.get(model, model)]
            ):
                return model, adapter
        return name, None

    def resolve(self, name: str, told: Collection[str] | None = None) -> str:
        """The model's own name. Where there is none, the error names those ``told``; all if empty.

        Raises:
            ApiError: there is no such model.
        """
        name, _ = self.split(name)
        name = self._aliases.get(name, name)
        if name not in self._slots:
            raise ApiError(
                "model_not_found",
                f"There is no model called {name!r:.100} here; there are "
                f"{', '.join(told or [known for known, _ in self.names()])}.",
                param="model",
            )
        return name

    def loaded(self) -> dict[str, AsyncLLM]:
        return {name: slot.llm for name, slot in self._slots.items() if slot.llm is not None}

    async def start(self) -> None:
        """Load the first model.

        Raises: as ``load`` and ``AsyncLLM``.
        """
        if self._budget is None:
            self._budget = int((available_memory() or 2**33) * _BUDGET_SHARE)
        for slot in self._slots.values():
            slot.is_in_main_memory = await asyncio.to_thread(is_in_main_memory, slot.config)
        await self._run(self._load, self._slots[self.default_name])
        self._is_started = True

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[AsyncLLM]:
        """The model of that name, which stays loaded meanwhile.

        Raises:
            ApiError: there is none, it cannot be loaded, or the memory is taken by others in use.
        """
        slot = self._slots[self.resolve(name)]
        if not self._is_started:
            raise ApiError(
                "loading",
                "The server is still loading its model. Try again in a moment.",
                retry_after_s=_RETRY_LOADING_S,
            )
        slot.num_users += 1
        try:
            if slot.llm is None or slot.llm.is_closed:
                await self._run(self._ensure, slot)
            assert slot.llm is not None
            slot.last_used = next(self._clock)
            yield slot.llm
        finally:
            slot.num_users -= 1

    async def aclose(self) -> None:
        self._is_closing = True
        async with self._loading:
            for slot in self._slots.values():
                await self._unload(slot)

    async def _run(self, load: Callable[[_Slot], Coroutine[Any, Any, None]], slot: _Slot) -> None:
        """Load a model once, however many ask, and to the end also when nobody waits any more: its
        thread cannot be stopped, and what that opens must be somebody's."""

        async def alone() -> None:
            async with self._loading:
                await load(slot)

        def end(task: asyncio.Task[None]) -> None:
            slot.load = None
            if not task.cancelled():
                task.exception()  # whoever waits is told; it may be nobody

        if slot.load is None:
            slot.load = asyncio.create_task(alone())
            slot.load.add_done_callback(end)
        await asyncio.shield(slot.load)

    async def _ensure(self, slot: _Slot) -> None:
        if slot.llm is not None and not slot.llm.is_closed:
            return
        try:
            await self._load(slot)
        except ApiError:
            raise
        except GlimmerError as error:
            # The message may name a path of this machine: it is for the log.
            _LOG.error("%s cannot be loaded: %s", slot.config.name, error)
            raise ApiError(
                "memory", f"The model {slot.config.name!r} cannot be loaded; the log says why."
            ) from error

    async def _load(self, slot: _Slot) -> None:
        await self._unload(slot)
        weights = await asyncio.to_thread(weights_bytes, slot.config)
        kv_memory = self._kv_memory(slot, weights)
        slot.size_bytes = 0
        if slot.is_in_main_memory:
            slot.size_bytes = weights + (parse_bytes(kv_memory) if kv_memory is not None else 0)
        await self._make_room(slot)
        start = time.perf_counter()
        slot.llm = await asyncio.to_thread(
            open_llm, slot.config, kv_memory, lambda: self._is_closing
        )
        size_bytes = slot.llm.memory_bytes
        slot.size_bytes = size_bytes if slot.is_in_main_memory else 0
        _LOG.info(
            "%s is loaded (%.1f s, %.2f GiB)",
            slot.config.name,
            time.perf_counter() - start,
            size_bytes / 2**30,
        )

    def _kv_memory(self, slot: _Slot, weights: int) -> int | str | None:
        """One model alone takes what there is, unless a limit was set; several share the budget
        equally."""
        assert self._budget is not None
        if slot.config.kv_memory is not None or not slot.is_in_main_memory:
            return slot.config.kv_memory
        here = [slot for slot in self._slots.values() if slot.is_in_main_memory]
        if len(here) == 1 and not self._is_limited:
            return None
        return max(self._budget // len(here) - weights, _LEAST_KV_BYTES)

    async def _make_room(self, slot: _Slot) -> None:
        """Unload idle models until ``slot`` fits.

        Raises:
            OutOfMemoryError: it would not fit alone.
            ApiError: it does not fit beside those in use.
        """
        assert self._budget is not None
        if slot.size_bytes > self._budget:
            raise OutOfMemoryError(
                f"{slot.config.name} takes {slot.size_bytes / 2**20:.0f} MiB, but all models "
                f"together may take {self._budget / 2**20:.0f} MiB. Allow more with --memory, or "
                "less for its KV cache with --kv-memory."
            )
        others = [s for s in self._slots.values() if s is not slot and s.llm and s.size_bytes]
        others.sort(key=lambda s: s.last_used)
        while others and slot.size_bytes + sum(s.size_bytes for s in others) > self._budget:
            idle = next((s for s in others if s.num_users == 0), None)
            if idle is None:
                raise ApiError(
                    "memory",
                    f"There is no room for the model {slot.config.name!r} beside those that are "
                    "answering. Try again later.",
                    retry_after_s=_RETRY_LOADING_S,
                )
            _LOG.info("%s makes room for %s", idle.config.name, slot.config.name)
            await self._unload(idle)
            others.remove(idle)

    async def _unload(self, slot: _Slot) -> None:
        if slot.llm is not None:
            llm, slot.llm = slot.llm, None
            await llm.aclose()
            del llm
            trim_heap()


def _adapters(slot: _Slot) -> Sequence[str]:
    """Those that requests may name: of a model that is not loaded, those that it will have."""
    return list(slot.config.adapters) if slot.llm is None else slot.llm.adapters
