"""`glimmer serve`: the API server."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

_SERVER = "Address and safety"
_RUNNING = "Running"
_MODEL = "Each model"


ENGINE_ARGS = "engine_args"
# Settings whose option has another name.
_FLAGS = {"adapters": "--adapter", "backends": "--backend", ENGINE_ARGS: "what stands after --"}


class ServeCommand(TyperCommand):
    """What stands after ``--`` is for the engine, and no model's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[ENGINE_ARGS], args = args[at + 1 :], args[:at]
        return super().parse_args(ctx, args)


def serve(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="Folders, GGUF files or releases; the first is loaded at once.",
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file; the environment (GLIMMER_PORT ...) and options go before it."
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print what would be used, as JSON, and exit.")
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="Default: 127.0.0.1.", rich_help_panel=_SERVER)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Default: 8000; 0 takes a free one.", rich_help_panel=_SERVER)
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="One key for everybody; better in GLIMMER_API_KEY.", rich_help_panel=_SERVER
        ),
    ] = None,
    auth: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option(help="Ask for a key; auto does once there is one.", rich_help_panel=_SERVER),
    ] = None,
    open_to_network: Annotated[
        bool | None,
        typer.Option(
            "--open-to-network", help="Let others in without any key.", rich_help_panel=_SERVER
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM).", rich_help_panel=_SERVER)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key (PEM).", rich_help_panel=_SERVER)
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let pages from there call; repeatable.", rich_help_panel=_SERVER),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Of keys and usage. Default: an SQLite file.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    master_key_file: Annotated[
        Path | None, typer.Option(help="What keys are derived from.", rich_help_panel=_SERVER)
    ] = None,
    jobs_dir: Annotated[
        Path | None,
        typer.Option(help="Of files, batches and answers fetched later.", rich_help_panel=_SERVER),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALIAS=NAME",
            help="Another name for a model, such as a hosted one's; repeatable.",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="For all models together: 16GiB.", rich_help_panel=_RUNNING
        ),
    ] = None,
    max_body_mb: Annotated[
        float | None, typer.Option(help="Largest request. Default: 16.", rich_help_panel=_RUNNING)
    ] = None,
    drain_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds for requests to finish when stopped. Default: 30.",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(rich_help_panel=_RUNNING)
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(rich_help_panel=_RUNNING),
    ] = None,
    weights: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] | None,
        typer.Option(help="Convert the weights; auto keeps them.", rich_help_panel=_MODEL),
    ] = None,
    activations: Annotated[
        Literal["auto", "int8", "int16"] | None,
        typer.Option(
            help="How int4 weights meet their inputs: int8 is faster, int16 exact.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: one per core.", rich_help_panel=_MODEL)
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "--max-model-len",
            help="Longest conversation in tokens.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(help="Answers at a time; others wait. Default: 32.", rich_help_panel=_MODEL),
    ] = None,
    max_waiting: Annotated[
        int | None,
        typer.Option(help="Requests that may wait. Default: 1000.", rich_help_panel=_MODEL),
    ] = None,
    kv: Annotated[
        Literal["auto", "float16", "float32", "int8"] | None,
        typer.Option(help="What keys and values are kept in.", rich_help_panel=_MODEL),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For the KV cache: 2GiB.", rich_help_panel=_MODEL),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="LoRA or P-Tuning that requests may ask for by name; repeatable. With several "
            "models, say in the configuration file whose it is.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Name the family instead of recognising it.", rich_help_panel=_MODEL),
    ] = None,
    engine: Annotated[
        Literal["native", "torch", "vllm"] | None,
        typer.Option(
            help="Who runs the network. Default: native; vllm is started, with what stands "
            "after --.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        typer.Option(
            help="Where torch computes; auto is a GPU if there is one.", rich_help_panel=_MODEL
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A vLLM server that runs the model; repeatable. Its key: GLIMMER_BACKEND_API_KEY.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
) -> None:
    """Serve models to programs: the APIs of OpenAI, BigModel (hosted GLM) and Anthropic."""
    from glimmer.cli import terminal
    from glimmer.cli.options import named_adapters
    from glimmer.errors import InvalidParameterError
    from glimmer.server.config import ModelConfig, load_config

    each = {
        "weights": weights,
        "activations": activations,
        "threads": threads,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_waiting": max_waiting,
        "kv": kv,
        "kv_memory": kv_memory,
        "family": family,
        "adapters": named_adapters(adapter) if adapter else None,
        "engine": engine,
        "device": device,
        "backends": backend or None,
        "engine_args": context.meta.get(ENGINE_ARGS) or None,
    }
    _check_places(len(models or ()), _given(each))
    aliases = {}
    for text in alias or ():
        name, separator, target = text.partition("=")
        if not separator:
            raise InvalidParameterError(f"--alias takes ALIAS=NAME, but it is {text!r}.")
        aliases[name] = target
    given: dict[str, Any] = {
        "models": [ModelConfig.parse(m, **_given(each)) for m in models] if models else None,
        "aliases": aliases or None,
        "memory": memory,
        "host": host,
        "port": port,
        "api_key": api_key,
        "auth": auth,
        "open_to_network": open_to_network,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "cors_origins": cors_origin or None,
        "database": database,
        "master_key_file": master_key_file,
        "jobs_dir": jobs_dir,
        "max_body_mb": max_body_mb,
        "drain_s": drain_s,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = load_config(config, **_given(given))
    if print_config:
        terminal.write(settings.model_dump_json(indent=2) + "\n")
        return
    from glimmer.server.run import serve as run

    def announce(url: str, asks_for_keys: bool) -> None:
        key = "asks for a key" if asks_for_keys else "asks for no key"
        names = ", ".join([*(m.name for m in settings.models), *settings.aliases])
        terminal.messages().print(
            f"Glimmer listens at {url} and {key}. Models: {terminal.printable(names)}\n"
            f"  OpenAI     {url}/v1\n"
            f"  BigModel   {url}/api/paas/v4\n"
            f"  Anthropic  {url}\n"
            f"  Docs       {url}/docs",
            highlight=False,
        )

    run(settings, announce)


def _check_places(num_models: int, each: Collection[str]) -> None:
    """Whether options of each model have models to go with.

    Raises:
        InvalidParameterError: they would go unheard, or to another model than was meant.
    """
    from glimmer.errors import InvalidParameterError

    flags = [_FLAGS.get(name, "--" + name.replace("_", "-")) for name in each]
    if flags and num_models == 0:
        raise InvalidParameterError(
            f"{', '.join(flags)} would change nothing: such options go with models that are named "
            "on the command line. Name one, or say it under each model in the configuration file."
        )
    for name, what in (("adapters", "adapters"), ("backends", "backends")):
        if name in each and num_models > 1:
            raise InvalidParameterError(
                f"{_FLAGS[name]} goes with one model on the command line. For several, list {what} "
                "under each model in the configuration file."
            )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
