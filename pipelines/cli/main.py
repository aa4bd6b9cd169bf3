"""``vthink``: the command line.

Only Typer is imported until a command runs, so that ``vthink --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ... import __version__
from ...components.common.launch.process import end_quickly
from . import cluster, compare, config, data, evaluate, gate, look, plan, run, serve, submit, train

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="vthink",
    help="Teach a multimodal LLM to reason over video, and serve it: here, or on Kubeflow Pipelines.",
    epilog="Start with: vthink run --preset laptop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


run.register(app)
submit.register(app)
cluster.register(app)
plan.register(app)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
evaluate.register(app)
compare.register(app)
gate.register(app)
serve.register(app)
look.register(app)
app.add_typer(config.app, name="config")


def main() -> None:
    """Run the command line.

    What the package raises itself, and a file that cannot be read or written, becomes one line; everything else is a
    bug and keeps its traceback.
    """
    end_quickly()
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as error:
        # Typer turns Ctrl-C into this exit code and says nothing.
        if isinstance(error, SystemExit) and error.code != INTERRUPTED:
            raise
        print("\nvthink: interrupted; what is finished is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"vthink: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if type(error).__module__.split(".")[0] != (__package__ or "").split(".")[0]:
            raise
        for line in getattr(error, "lines", ()):
            print(f"  {line}", file=sys.stderr)
        print(f"vthink: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
