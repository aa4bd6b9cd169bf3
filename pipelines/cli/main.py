"""``vthink``: the command line, as one table of its commands.

A command's module is imported when it is called, so that ``vthink --help`` answers at once.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ... import __version__
from ...components.common.errors import UserError
from ...components.common.launch.process import skip_garbage_collection_at_exit

INTERRUPTED = 130  # exit code after Ctrl-C


@dataclass(frozen=True)
class Command:
    """A row of the table."""

    panel: str  # under which word `vthink --help` lists it
    name: str  # after `vthink`: one word; of a group's command two
    target: str
    """``module:function`` in this folder: its parameters are the command's and its docstring the help. Empty: a group,
    whose commands follow."""
    summary: str  # its line in `vthink --help`; for a group's command empty, and its docstring's first sentence shown
    examples: str = ""  # arguments for the examples at the end of its help, one a line

    @property
    def epilog(self) -> str:
        """The examples, ready to copy."""
        lines = [f"vthink {self.name} {arguments}".rstrip() for arguments in self.examples.split("\n")]
        return f"Example: {lines[0]}" if len(lines) == 1 else "\n\n".join(("Examples:", *lines))


_TEACHER = "--set curation.teacher.url=http://127.0.0.1:8000/v1 --set curation.teacher.model=Qwen/Qwen2.5-72B-Instruct"
_JUDGE = "--set curation.judge.url=http://127.0.0.1:8001/v1 --set curation.judge.model=Qwen/Qwen2.5-VL-7B-Instruct"
_RUN = "video_r1_7b-20260101-090000-ab12"
# fmt: off
COMMANDS = (
    Command("Data", "data", "", "generate, check, prepare, rate and show rows and videos"),
    Command("Data", "data synthesize", "data:synthesize", "", "world --set data.synthesize.num_train=100"),
    Command("Data", "data prepare", "data:prepare", "", "Video-R1-COT-165k.json --set data.roots.*=s3://videos/"),
    Command("Data", "data validate", "data:validate", "",
            "world/rows.jsonl Video-R1-260k.json --root '*=/data/video-r1'"),
    Command("Data", "data difficulty", "data:difficulty", "", "rated.jsonl --policy s3://vthink/sft/0123456789abcdef/"),
    Command("Data", "data curate", "data:curate", "", f"captions.json -o curated.jsonl {_TEACHER} {_JUDGE}"),
    Command("Data", "data report", "data:report", "", "s3://vthink/prepare/0123456789abcdef/ -o data.html"),
    Command("Train", "init", "init:init", "a configuration for your own rows and videos",
            "my.yaml --rows rows.csv\nmy.yaml --rows videos/ --preset laptop"),
    Command("Train", "run", "train:run", "the whole pipeline here, from rows to a served model",
            "--preset laptop --set launch.processes=2"),
    Command("Train", "watch", "status:watch", "follow the run of this machine from another terminal"),
    Command("Train", "train", "", "one training stage by itself: sft or grpo"),
    Command("Train", "train sft", "train:sft", "", "--preset laptop --data world/rows.jsonl"),
    Command("Train", "train grpo", "train:grpo", "", "--policy s3://vthink/sft/0123456789abcdef/"),
    Command("Train", "plan", "train:plan", "what a run will need: tokens, memory, GPU-hours, cost",
            "--preset video_r1_7b --gpu a100-80gb --gpus 8 --rows 165000 --price 2.5"),
    Command("Train", "config", "", "show, check and list configurations"),
    Command("Train", "config show", "train:config_show", "", "--preset video_r1_7b --set grpo.learning_rate=5e-6"),
    Command("Train", "config validate", "train:config_validate", "", "my.yaml"),
    Command("Train", "config presets", "train:config_presets", ""),
    Command("Evaluate", "evaluate", "evaluate:evaluate", "models on the held-out split, or one on a public benchmark",
            "--sft s3://vthink/sft/0123456789abcdef/\n"
            "--benchmark video-holmes --data ~/Video-Holmes --model models:/vthink@champion --output holmes\n"
            "--benchmark vsi-bench --data s3://sets/vsi/ --model http://127.0.0.1:8080 --output vsi"),
    Command("Evaluate", "compare", "evaluate:compare", "finished benchmarks side by side, with paired tests",
            "base=out/base-holmes ours=out/ours-holmes base=out/base-vsi ours=out/ours-vsi --report benchmarks.html"),
    Command("Evaluate", "gate", "evaluate:gate", "judge rules about finished benchmarks",
            '"{metric: accuracy, above: 0.4}" --candidate out/holmes\n'
            '"{metric: accuracy, not_worse_than: champion, by: 0.01}" --candidate new --champion old\n'
            "--rules rules.yaml --candidate new-holmes --candidate new-vsi --champion old-holmes --champion old-vsi"),
    Command("Serve", "serve", "serve:serve", "serve a model here, with a page to try it", "--port 8080"),
    Command("Serve", "ask", "serve:ask", "ask a served model about a video",
            "http://127.0.0.1:8080 clip.mp4 'Which way does it move?'"),
    Command("Serve", "deploy", "serve:deploy", "test a registered version and put it into service",
            "candidate --preset team.yaml --hold"),
    Command("Serve", "promote", "serve:promote", "give the waiting candidate all of the traffic", "--preset team.yaml"),
    Command("Serve", "rollback", "serve:rollback", "take the candidate away, or go one version back",
            "--preset team.yaml"),
    Command("Cluster", "doctor", "cluster:doctor", "is everything there that a run on the cluster needs?",
            "--preset video_r1_7b --namespace vthink"),
    Command("Cluster", "compile", "cluster:compile_pipeline", "write the pipeline for the Kubeflow Pipelines page",
            "--output vthink.yaml"),
    Command("Cluster", "submit", "cluster:submit", "start a run on Kubeflow Pipelines",
            "--host https://kubeflow.example.org/pipeline --preset video_r1_7b --wait"),
    Command("Cluster", "status", "status:status", "runs, their stages, and the model in service", _RUN),
    Command("Cluster", "logs", "status:logs", "what a stage of a run printed", f"grpo\n{_RUN} grpo"),
    Command("Cluster", "retry", "cluster:retry", "continue a failed or stopped run", f"{_RUN} --wait"),
    Command("Cluster", "cancel", "cluster:cancel", "stop a run, or delete a recurring one", _RUN),
    Command("Look", "ui", "artifacts:ui", "MLflow: runs, curves, rollouts, model versions", "--port 5000"),
    Command("Look", "report", "artifacts:report", "the last evaluation as an HTML page", "--output report.html"),
    Command("Look", "prune", "artifacts:prune", "list or delete output that nothing needs any more",
            "--older-than 30 --delete"),
)
# fmt: on


class LazyCommand(TyperCommand):
    """A command, or a group with its commands, whose module is imported when it is called or its help is shown."""

    def load(self) -> Any:
        """The command itself."""
        rows = [row for row in COMMANDS if row.name == self.name or row.name.startswith(f"{self.name} ")]
        group = typer.Typer(help=f"{self.help}.", no_args_is_help=True, add_completion=False)
        for row in rows:
            if row.target:
                module, _, function = row.target.partition(":")
                command = getattr(import_module(f".{module}", __package__), function)
                group.command(row.name.rpartition(" ")[2], epilog=row.epilog)(command)
        return typer.main.get_command(group)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the arguments as the command itself does."""
        return self.load().make_context(*args, **extra)


class Overview(TyperGroup):
    """`vthink` itself, whose help is one screen: a line per command, by panel."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for row in COMMANDS:
            if " " not in row.name:
                self.add_command(LazyCommand(row.name, help=row.summary[0].upper() + row.summary[1:]))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the overview."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        formatter.write("\n")
        panel = ""
        for command in COMMANDS:
            if " " not in command.name:
                shown = "" if command.panel == panel else typer.style(f"{command.panel:<10}", bold=True)
                formatter.write(f"{shown or ' ' * 10}{command.name:<10}{command.summary}\n")
                panel = command.panel
        options = [" ".join(parameter.opts) for parameter in self.get_params(ctx)]
        formatter.write(f"\n{typer.style('Options', bold=True)}   {'  '.join(options)}\n")
        self.format_epilog(ctx, formatter)


app = typer.Typer(
    name="vthink",
    cls=Overview,
    help="Teach a multimodal LLM to reason over video, and serve it: here, or on Kubeflow Pipelines.",
    epilog="Start with: vthink run --preset laptop; with your own videos: vthink init my.yaml --rows rows.csv",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    What a user can cause, and a file that cannot be read or written, becomes one line; everything else is a bug and
    keeps its traceback."""
    skip_garbage_collection_at_exit()
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
    except UserError as error:
        print(f"vthink: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
