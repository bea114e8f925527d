"""How a server is set up: by a TOML file, the environment, and what is given in code or flags."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from glimmer.errors import InvalidParameterError, ModelNotFoundError


class BackendConfig(BaseModel):
    """A vLLM server that runs already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """Its root, such as "http://10.0.0.7:8000"."""
    key_env: str = "GLIMMER_BACKEND_API_KEY"
    """The variable of the environment that holds its API key, if it asks for one."""


class ModelConfig(BaseModel):
    """One model to serve; values that are not given are those of ``glimmer chat``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """A folder, a GGUF file or a release."""
    name: str
    """What clients call it."""
    weights: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"
    activations: Literal["auto", "int8", "int16"] = "auto"
    threads: int | None = Field(None, ge=1)
    family: str | None = None
    max_model_len: int | None = Field(None, ge=2)
    max_num_seqs: int = Field(32, ge=1, le=4096)
    max_waiting: int = Field(1000, ge=1)
    kv: Literal["auto", "float16", "float32", "int8"] = "auto"
    kv_memory: str | None = None
    """Of its KV cache, such as "2GiB"; by default what the memory budget leaves."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """Folders by the names that requests give them."""
    engine: Literal["native", "torch", "vllm"] = "native"
    """Who runs the network; vllm where there are backends."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the engine torch computes."""
    backends: list[BackendConfig] = Field(default_factory=list)
    """vLLM servers that run the model already; without any, one is started. Addresses alone are
    taken too."""
    engine_args: list[str] = Field(default_factory=list)
    """Of a vLLM that is started: what `vllm serve` takes."""

    @model_validator(mode="before")
    @classmethod
    def _with_backends(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("backends"), list):
            return given
        backends = [{"url": b} if isinstance(b, str) else b for b in given["backends"]]
        implied = {"engine": "vllm"} if backends else {}
        return {**implied, **given, "backends": backends}

    @classmethod
    def parse(cls, text: str, **values: Any) -> ModelConfig:
        """From ``NAME=SOURCE`` or ``SOURCE``, whose last part then is the name."""
        name, separator, source = text.partition("=")
        if not separator:
            name, source = Path(text).name.removesuffix(".gguf") or text, text
        return cls(name=name, source=source, **values)


class ServerConfig(BaseSettings):
    """Everything that a server can be told. In the environment: GLIMMER_ and the name."""

    model_config = SettingsConfigDict(
        env_prefix="GLIMMER_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    models: list[ModelConfig] = Field(default_factory=list)
    aliases: dict[str, str] = Field(default_factory=dict)
    """Other names that clients may use, such as those of hosted models."""
    memory: str | None = None
    """For all models together, such as "16GiB"; by default nine tenths of what is free."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_origins: list[str] = Field(default_factory=list)

    api_key: SecretStr | None = None
    """One key for everybody, beside those of `glimmer keys`."""
    auth: Literal["auto", "on", "off"] = "auto"
    """auto asks for a key as soon as there is one."""
    open_to_network: bool = False
    """Allow an address beyond this machine without any key."""
    database: str | None = None
    """Of keys and usage; by default an SQLite file in the user's data folder."""
    master_key_file: Path | None = None

    jobs_dir: Path | None = None
    """Of files, batches and answers fetched later; by default beside the database's default."""

    max_body_mb: float = Field(16, gt=0)
    keep_alive_s: float = Field(15, gt=0)
    """After so long without an event a stream gets a comment."""
    stall_s: float = Field(60, gt=0)
    """A client that neither sends nor takes anything for so long is left."""
    drain_s: float = Field(30, ge=0)
    """What runs may run on for so long when the server is asked to stop."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_config(file: Path | None = None, **given: Any) -> ServerConfig:
    """The values of ``file``, unless the environment or ``given`` has others.

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidParameterError: a value that is unknown or not allowed, or no TOML.
    """

    class Sources(ServerConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (init_settings, env_settings)
            if file is None:
                return sources
            return *sources, TomlConfigSettingsSource(settings_cls, file)

    if file is not None and not file.is_file():
        raise ModelNotFoundError(f"There is no configuration file {file}.")
    try:
        config = Sources(**given)
    except tomllib.TOMLDecodeError as error:
        raise InvalidParameterError(f"{file} is not TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidParameterError(f"The setting {where} is wrong: {first['msg']}.") from error
    except SettingsError as error:
        raise InvalidParameterError(
            f"{error}. Lists and tables in the environment are JSON."
        ) from error
    _check(config)
    return config


def _check(config: ServerConfig) -> None:
    names = [model.name for model in config.models] + list(config.aliases)
    if not config.models:
        raise InvalidParameterError("There is no model to serve: name at least one.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidParameterError(
            f"Two models, or aliases, are called {twice[0]!r}: give them names with NAME=MODEL."
        )
    for model in config.models:
        for adapter in model.adapters:
            if not adapter:
                raise InvalidParameterError(f"{model.name}: an adapter's name is empty.")
            if (told := f"{model.name}:{adapter}") in names:
                raise InvalidParameterError(
                    f"{told!r} is what clients may call {model.name!r} with its adapter "
                    f"{adapter!r}, and the name of a model or alias too: give one of them another."
                )
            names.append(told)
    for alias, target in config.aliases.items():
        if target not in names[: len(config.models)]:
            raise InvalidParameterError(
                f"The alias {alias!r} stands for {target!r}, but the models are called "
                f"{', '.join(model.name for model in config.models)}."
            )
    if (config.tls_cert is None) != (config.tls_key is None):
        raise InvalidParameterError("TLS needs both tls_cert and tls_key; one is missing.")
    for file in (config.tls_cert, config.tls_key):
        if file is not None and not file.is_file():
            raise InvalidParameterError(f"There is no TLS file {file}.")
    for model in config.models:
        _check_engine(model)


def _check_engine(model: ModelConfig) -> None:
    """Whether its settings are of use where it runs."""
    fields = type(model).model_fields
    given = {
        name
        for name, field in fields.items()
        if getattr(model, name) != field.get_default(call_default_factory=True)
    }
    for engine, own in (("vllm", {"backends", "engine_args"}), ("torch", {"device"})):
        if model.engine != engine and (wrong := sorted(given & own)):
            raise InvalidParameterError(
                f"{model.name}: {', '.join(wrong)} is for the engine {engine}, but the engine is "
                f"{model.engine}."
            )
    if model.engine == "torch" and "activations" in given:
        raise InvalidParameterError(
            f"{model.name}: activations is the native engine's, and means nothing to torch. Leave "
            "it out."
        )
    if model.engine != "vllm":
        return
    useless = {"threads", "activations", "kv", "adapters"}
    if model.backends:
        useless |= {"weights", "kv_memory", "engine_args"}
    if wrong := sorted(given & useless):
        what = "the servers that are named as backends" if model.backends else "the engine vllm"
        raise InvalidParameterError(
            f"{model.name}: {', '.join(wrong)} means nothing to {what}. Leave it out; vLLM has "
            "settings of its own (those of one that Glimmer starts stand after --)."
        )
    if model.weights in ("int8", "int4"):
        raise InvalidParameterError(
            f"{model.name}: vLLM does not read weights of Glimmer's {model.weights} form. Give "
            "float32, bfloat16 or float16, or have vLLM convert them: -- --quantization ..."
        )
