"""The `glimmer` command: its subcommands, and what an error looks like to a person."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Annotated

import typer

from glimmer.cli import terminal
from glimmer.cli.adapter import adapter
from glimmer.cli.chat import chat
from glimmer.cli.convert import convert, quantize
from glimmer.cli.data import data
from glimmer.cli.doctor import doctor
from glimmer.cli.env import env
from glimmer.cli.finetune import finetune
from glimmer.cli.generate import generate
from glimmer.cli.infill import infill
from glimmer.cli.keys import keys
from glimmer.cli.list import list_releases
from glimmer.cli.merge import merge
from glimmer.cli.migrate import migrate
from glimmer.cli.plan import plan
from glimmer.cli.pretrain import pretrain
from glimmer.cli.pull import pull, remove
from glimmer.cli.serve import ServeCommand, serve
from glimmer.cli.show import show
from glimmer.cli.usage import usage
from glimmer.cli.verify import verify
from glimmer.errors import GlimmerError

app = typer.Typer(
    help="Run the ChatGLM lineage on this machine's CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "chat": chat,
    "generate": generate,
    "infill": infill,
    "serve": serve,
    "usage": usage,
    "list": list_releases,
    "pull": pull,
    "rm": remove,
    "plan": plan,
    "show": show,
    "doctor": doctor,
    "verify": verify,
    "convert": convert,
    "quantize": quantize,
    "merge": merge,
    "finetune": finetune,
    "pretrain": pretrain,
    "env": env,
}
_CLASSES = {"serve": ServeCommand}
for name, command in _COMMANDS.items():
    app.command(name, cls=_CLASSES.get(name))(command)
app.add_typer(adapter, name="adapter")
app.add_typer(data, name="data")
app.add_typer(keys, name="keys")
app.add_typer(migrate, name="migrate")


def _print_version(wanted: bool) -> None:
    if wanted:
        import glimmer

        typer.echo(f"glimmer {glimmer.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0 for success, 1 for a failure, 2 for a wrong use, 130 for Ctrl-C.
    """
    if sys.stdout is None:
        _report("Standard output is closed.")
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal's encoding may lack what a model says; losing the answer would be worse.
            stream.reconfigure(errors="backslashreplace")
    try:
        result = app(args=args, prog_name="glimmer", standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except GlimmerError as error:
        _report(str(error))
        return error.exit_code
    except typer.TyperException as error:
        return _report_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        _discard_output()
        return 1
    except MemoryError:
        _report("This machine has not enough free memory for that.")
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _report(f"{where}{error.strerror or error}")
        return 1


def _report(message: str) -> None:
    """One error on standard error. A message may quote a model's file, so it is data."""
    console = terminal.messages()
    console.print("error:", style="bold red", end=" ")
    console.print(terminal.printable(message))


def _report_usage(error: typer.TyperException) -> int:
    context: typer.Context | None = getattr(error, "ctx", None)
    if message := error.format_message():
        _report(message)
        command = context.command_path if context is not None else "glimmer"
        terminal.messages().print(f"Try '{command} --help'.")
    return error.exit_code


def _discard_output() -> None:
    """Let the interpreter's own flush at exit find no closed pipe (`glimmer ... | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
