"""Rows and videos: ``vthink data …``. What decodes videos or asks models is imported where it is called."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from ...components.common.errors import UserError
from ...components.common.launch.process import limit_threads
from ...components.common.progress import progress_bar
from ...components.common.rows.prepared import PreparedSet
from ...components.common.storage.config import StorageConfig
from ...components.common.storage.manifest import Manifest
from ...components.common.storage.s3 import Storage
from ...components.data_prep.curation.curate import Summary, estimate
from ...components.data_prep.curation.curate import curate as curate_rows
from ...components.data_prep.formats.registry import FORMATS
from ...components.data_prep.report.page import token_counter, write_report
from ...components.data_prep.validate import validate_rows
from ..config import load
from ..run.session import find_data, find_manifest, prepare_data, session
from .options import DATA_HELP, WORKSPACE, Data, Folder, Overrides, Policy, Preset

UNFINISHED = 3  # exit code of a curation that has something left to do: the budget is spent, or calls failed
_SHOWN_FAILURES = 5
_FILES = ".jsonl, .json, .parquet or .csv: a path, s3:// or hf:// URI."
_ROOTS = "Where a source's media are ('*': all others). Repeatable."
_FORMATS = f"How the rows are written: {', '.join(FORMATS)}, or my_module:FORMAT; default: as they look."
RowFormat = Annotated[str | None, Option("--format", metavar="NAME", help=_FORMATS)]


def synthesize(
    folder: Annotated[Path, Argument(help="Folder to write: rows.jsonl, videos/, images/.")],
    preset: Preset = "laptop", overrides: Overrides = None,
    processes: Annotated[int, Option(min=1, help="Encode in so many processes.")] = 1,
) -> None:  # fmt: skip
    """Generate a video-reasoning world: real mp4 files and images, with questions whose answers are known."""
    from ...components.data_prep.world.synthesize import synthesize as write_world

    config = load(preset, overrides)
    with progress_bar("files") as progress:
        print(write_world(config.data.synthesize, folder, progress, processes))


def prepare(
    rows: Annotated[str | None, Argument(help=f"{_FILES} Default: data.source.")] = None,
    row_format: RowFormat = None, preset: Preset = "laptop", overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Decode the videos of rows once, and store their frames as the set that training and evaluation read.

    What cannot be read is quarantined with its reason. Prints the manifest's URI, for `vthink train`."""
    changes = [f"data.{key}={value}" for key, value in (("source", rows), ("format", row_format)) if value]
    with session(load(preset, [*(overrides or ()), *changes]), workspace) as opened:
        uri = prepare_data(opened)
        for name, count in Manifest.read(opened.storage, uri).counts.items():
            print(f"{name}: {count}")
        print(uri)


def validate(
    rows: Annotated[list[str], Argument(help=_FILES)],
    row_format: RowFormat = None,
    roots: Annotated[list[str] | None, Option("--root", metavar="SOURCE=FOLDER", help=_ROOTS)] = None,
    show: Annotated[int, Option(min=0, help="Print so many of the mistakes of each file.")] = 20,
) -> None:
    """Check rows: fields, types, answers among the options, times, duplicates, splits, and that media files are there.

    A mistake is one line with file and line. The exit code is 1 when there is any."""
    if bad := [root for root in roots or () if "=" not in root]:
        raise UserError(f"--root {bad[0]}: expected SOURCE=FOLDER")
    store = Storage(StorageConfig()) if any(name.startswith("s3://") for name in rows) else None
    sound = True
    for name in rows:
        report = validate_rows(name, store, row_format, dict(root.split("=", 1) for root in roots or ()))
        sound = sound and bool(report.ok and report.rows)
        for problem in report.problems[:show]:
            print(f"{report.path}:{problem.line}: {problem.detail or problem.reason}")
        if report.bad > show:
            print(f"{report.path}: and {report.bad - show} more")
        kinds, sources, splits = (
            ", ".join(f"{name or 'no source'} {count}" for name, count in sorted(counts.items())) or "none"
            for counts in (report.by_type, report.by_source, report.by_split)
        )
        print(f"{report.path}: {report.rows - report.bad} rows are fine, {report.bad} are not (format {report.format})")
        print(f"  types: {kinds}; sources: {sources}; splits: {splits}")
        print(f"  videos and images: {report.media}, of which {report.missing_media} are missing")
    raise Exit(0 if sound else 1)


def difficulty(
    output: Annotated[Path, Argument(help="The rows with metadata.pass_rate, .jsonl; prepare them next.")],
    data: Data = None, policy: Policy = None,
    rollouts: Annotated[int, Option(min=1, help="Completions per question.")] = 8,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Ask a policy each training question several times, and write down how often it is right.

    Sampling is that of the section `grpo`. Then leave out what is too hard or too easy, or order the rows:
    `vthink data prepare rated.jsonl --set data.min_pass_rate=0.1 --set data.max_pass_rate=0.9`. A run that was cut off
    goes on."""
    from ...components.common.model.generation import Sampling
    from ...components.common.model.load import load_model
    from ...components.common.model.store import ensure_base_model, fetch_model
    from ...components.data_prep.difficulty import rate_counts, rate_rows

    if output.suffix != ".jsonl":
        raise UserError(f"{output}: rows are written as .jsonl")
    config = load(preset, overrides)
    limit_threads(config.launch)
    grpo = config.grpo
    with session(config, workspace) as opened:
        work = opened.workspace.work_dir / "difficulty"
        prepared = PreparedSet.open(opened.storage, find_data(opened, data), work / "data")
        uri = ensure_base_model(opened.storage, config.model, prepared.video)
        if policy:
            uri = Manifest.read(opened.storage, find_manifest(opened, policy)).files["model"]
        model = load_model(fetch_model(opened.storage, uri, work), config.model.dtype, config.model.attention)
        sampling = Sampling(
            max_new_tokens=grpo.max_new_tokens, temperature=grpo.temperature, top_p=grpo.top_p, seed=grpo.seed
        )
        with progress_bar("questions") as progress:
            rate_rows(model, uri, prepared, output, rollouts, sampling, progress=progress)
    print(", ".join(f"{name} right: {count}" for name, count in rate_counts(output).items()))
    print(output)


def curate(
    source: Annotated[str, Argument(help=f"Captioned segments (.json, as ActivityNet), or rows. {_FILES}")],
    output: Annotated[Path, Option("--output", "-o", help="Rows to write (.jsonl); its journal lies beside it.")],
    row_format: RowFormat = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say how many calls, and what they could cost.")] = False,
    preset: Preset = "laptop", overrides: Overrides = None,
) -> None:  # fmt: skip
    """Have a teacher model write reasoning traces, and keep those from which a judge finds the answer.

    curation.method=hindsight (Video-Thinker) or cot (Video-R1); any OpenAI-compatible servers, whose keys come from
    the environment variables named by curation.teacher.api_key_env and curation.judge.api_key_env. Stopped by Ctrl-C,
    by a kill or by curation.budget_usd, the same command goes on where it was. data.roots says where the rows' media
    are. The exit code is 3 when something is left to do."""
    config = load(preset, overrides)
    storage, rows = Storage(config.storage), (row_format or config.data.format, config.data.roots)
    if dry_run:
        total = estimate(source, output, config.curation, storage, *rows)
        print(f"{total.items} videos or questions, {total.items - total.decided} of them to do")
        print(f"calls: {total.min_calls:,} to {total.max_calls:,}")
        if total.max_usd:
            costs = f"about ${total.min_usd:.2f}, at most ${total.max_usd:.2f}"
            print(f"cost: {costs} (already spent: ${total.spent_usd:.2f})")
        else:
            print("cost: no prices are set (curation.teacher.usd_per_million_input_tokens, …)")
        return
    with progress_bar("curate") as progress:

        def show(now: Summary) -> None:
            progress(now.decided, now.items, f"{now.account.calls.total():,} calls, ${now.account.usd:.2f}")

        summary = curate_rows(source, output, config.curation, storage, show, *rows)
    _print_curation(summary, output)
    if not summary.complete:
        raise Exit(UNFINISHED)


def _print_curation(summary: Summary, output: Path) -> None:
    account = summary.account
    print(f"{output}: {summary.rows} rows of {summary.items} videos or questions")
    if summary.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary.dropped.most_common())
        print(f"dropped {summary.dropped.total()}: {reasons}; {output.with_suffix('.dropped.jsonl')} says why")
    calls = ", ".join(f"{role} {count}" for role, count in sorted(account.calls.items())) or "none"
    print(f"calls: {calls}; {account.failed_attempts} attempts failed, {summary.replayed} answers from the journal")
    tokens = f"{account.input_tokens:,} tokens in, {account.output_tokens:,} out"
    print(f"{tokens}; ${account.usd:.4f} spent on this output, earlier runs included")
    for failure in summary.failed[:_SHOWN_FAILURES]:
        print(f"failed: {failure}")
    if len(summary.failed) > _SHOWN_FAILURES:
        print(f"and {len(summary.failed) - _SHOWN_FAILURES} more failed")
    if not summary.complete:
        reason = f"{account.stop_reason}; " if account.stop_reason else ""
        print(f"{reason}{summary.items - summary.decided} are left: repeat the command to go on")


def report(
    prepared: Annotated[str | None, Argument(help=DATA_HELP)] = None,
    output: Annotated[Path, Option("--output", "-o", help="The page to write.")] = Path("data.html"),
    items: Annotated[int, Option(min=0, max=500, help="Show so many rows with their frames.")] = 36,
    tokenizer: Annotated[Path | None, Option(help="A tokenizer.json, to count tokens, not estimate them.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Write a prepared set as one HTML page: counts, lengths, answers, duplicates, quarantine, and rows to look at."""
    count_tokens = None if tokenizer is None else token_counter(tokenizer)
    with session(load(preset, overrides), workspace) as opened:
        manifest = Manifest.read(opened.storage, find_data(opened, prepared))
        folder = opened.workspace.work_dir / "report" / manifest.fingerprint
        output.write_text(write_report(manifest, opened.storage, folder, items, count_tokens), encoding="utf-8")
    print(output)
