"""The `llamba` command. Every command is a thin layer over a function of the package; heavy imports happen inside."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Turn a Llama into a Mamba-2/attention hybrid and decode it speculatively, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Model = Annotated[str, typer.Argument(help="A model folder (ours or a Llama's) or a hub id.")]
OutDir = Annotated[Path, typer.Argument(help="Where the result goes: an ordinary Hugging Face folder.")]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Text files or folders; repeatable. Default: Python's own standard-library sources."),
]
Layers = Annotated[str, typer.Option(help="Layers to convert, such as 3,7,11, or a number: the least important so many.")]


@app.callback()
def main(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
):
    context.obj = {"verbose": verbose}


def run() -> None:
    """Entry point: an error is one line that says what to do; --verbose adds the traceback."""
    try:
        app(standalone_mode=False)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if "--verbose" in sys.argv:
            raise
        Console(stderr=True, soft_wrap=True).print(f"[red]llamba:[/red] {str(error).splitlines()[0]}", highlight=False)
        raise SystemExit(1) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's usage errors
            error.show()
            raise SystemExit(error.exit_code) from None
        raise
