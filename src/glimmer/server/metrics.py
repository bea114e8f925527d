"""What Prometheus reads: vLLM's names under our prefix. Labels are models and outcomes, never
keys or text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glimmer.async_llm import AsyncLLM
from glimmer.engine import EngineStats
from glimmer.outputs import RequestOutput, Usage
from glimmer.server.ledger import Ledger

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TOKENS = tuple(float(2**n) for n in range(0, 21, 2))


class Metrics:
    """Counts requests; what engines count themselves is read when it is asked for."""

    def __init__(self, loaded: Callable[[], Mapping[str, AsyncLLM]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(loaded))
        model = ["model_name"]
        self._success = self._counter(
            "request_success", "Answers that ended, by how.", [*model, "finished_reason"]
        )
        self._responses = self._counter(
            "http_responses", "Responses, by route and status.", ["endpoint", "status"]
        )
        self._rate_limited = self._counter(
            "rate_limited", "Requests refused for a limit of their key.", ["kind"]
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", model)
        self._generation_tokens = self._counter("generation_tokens", "Tokens of answers.", model)
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From the request to its first token.", _SECONDS
        )
        self._per_token = self._histogram(
            "inter_token_latency_seconds", "From token to token, mean of a request.", _SECONDS
        )
        self._latency = self._histogram(
            "e2e_request_latency_seconds", "From the request to its last token.", _SECONDS
        )
        self._prompt_length = self._histogram(
            "request_prompt_tokens", "Tokens of a prompt.", _TOKENS
        )
        self._answer_length = self._histogram(
            "request_generation_tokens", "Tokens of an answer.", _TOKENS
        )

    def responded(self, endpoint: str, status: int) -> None:
        self._responses.labels(endpoint, str(status)).inc()

    def rate_limited(self, kind: str) -> None:
        self._rate_limited.labels(kind).inc()

    def finished(self, model: str, usage: Usage, outputs: Sequence[RequestOutput]) -> None:
        """A job is over; ``outputs`` holds the last of each answer."""
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._generation_tokens.labels(model).inc(usage.completion_tokens)
        for output in outputs:
            reason = output.finish_reason or "aborted"
            self._success.labels(model, reason).inc()
            self._prompt_length.labels(model).observe(output.usage.prompt_tokens)
            self._answer_length.labels(model).observe(output.usage.completion_tokens)
            if not output.token_ids:
                continue
            self._first_token.labels(model).observe(output.timing.time_to_first_token_s)
            self._latency.labels(model).observe(output.timing.total_s)
            if output.timing.decode_tokens_per_s:
                self._per_token.labels(model).observe(1 / output.timing.decode_tokens_per_s)

    def watch(self, ledger: Ledger) -> None:
        """Tell how the ledger fares."""
        for name, what, read in (
            ("ledger_queued", "Records that wait to be written.", lambda: ledger.num_queued),
            ("ledger_lost", "Records that could not be written.", lambda: ledger.num_lost),
        ):
            gauge = Gauge(f"glimmer:{name}", what, registry=self._registry)
            gauge.set_function(read)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, labels: list[str]) -> Counter:
        return Counter(f"glimmer:{name}", what, labels, registry=self._registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"glimmer:{name}", what, ["model_name"], buckets=buckets, registry=self._registry
        )


_Readers = dict[str, tuple[str, Callable[[EngineStats], float]]]


class _EngineCollector(Collector):
    def __init__(self, loaded: Callable[[], Mapping[str, AsyncLLM]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterator[Metric]:
        stats = {name: llm.stats for name, llm in self._loaded().items()}
        gauges: _Readers = {
            "num_requests_running": ("Sequences in the batch.", lambda s: s.num_running),
            "num_requests_waiting": ("Sequences in the queue.", lambda s: s.num_waiting),
            "kv_cache_usage_perc": (
                "Share of the KV cache's blocks that is in use, 0 to 1.",
                lambda s: 1 - s.num_free_blocks / s.num_blocks if s.num_blocks else 0.0,
            ),
        }
        counters: _Readers = {
            "num_preemptions": ("Sequences computed again.", lambda s: s.num_preemptions),
            "prefix_cache_queries": ("Prompt tokens.", lambda s: s.num_prompt_tokens),
            "prefix_cache_hits": ("Of these, found in the cache.", lambda s: s.num_cached_tokens),
            "spec_decode_num_draft_tokens": ("Tokens drafted.", lambda s: s.num_drafts),
            "spec_decode_num_accepted_tokens": (
                "Of these, kept.",
                lambda s: s.num_accepted_drafts,
            ),
            "engine_steps": ("Steps of the engine.", lambda s: s.num_steps),
            "backend_retries": (
                "Requests that another backend got, since the first one failed.",
                lambda s: s.num_retries,
            ),
        }
        for name, (what, read) in gauges.items():
            gauge = GaugeMetricFamily(f"glimmer:{name}", what, labels=["model_name"])
            for model, values in stats.items():
                gauge.add_metric([model], read(values))
            yield gauge
        for name, (what, read) in counters.items():
            counter = CounterMetricFamily(f"glimmer:{name}", what, labels=["model_name"])
            for model, values in stats.items():
                counter.add_metric([model], read(values))
            yield counter
        labels = ["model_name", "backend"]
        up = GaugeMetricFamily("glimmer:backend_up", "Whether a backend answers.", labels=labels)
        running = GaugeMetricFamily(
            "glimmer:backend_requests_running", "Requests under way there.", labels=labels
        )
        for model, values in stats.items():
            for backend in values.backends:
                up.add_metric([model, backend.name], float(backend.is_up))
                running.add_metric([model, backend.name], backend.num_running)
        yield from (up, running)
