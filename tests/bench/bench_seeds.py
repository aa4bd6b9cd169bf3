"""Does the demo learn, and does it learn from what it sees? Three seeds of the whole pipeline, with controls.

``make seeds`` runs it: per seed the demo, and once more its GRPO with the rewards permuted within each group (which
must teach nothing). The pixels of another video and shuffled frames are conditions of every evaluation. Prints a
Markdown table; with ``--readme FILE`` also puts it there, between its markers. Finished work is reused, so that an
interrupted bench goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REFUSED = 3
"""Exit code of `vthink run` when the gate refuses; expected of the control."""
KIND = "direction"


@dataclass(frozen=True)
class Row:
    """What one seed came to, on the direction questions of the test split."""

    seed: int
    sft: Mapping[str, float]
    sft_format: float
    grpo: Mapping[str, float]
    shuffled: Mapping[str, float]
    other_video: Mapping[str, float]
    control: Mapping[str, float]
    """GRPO with permuted rewards."""
    minutes: float

    @property
    def shortfalls(self) -> list[str]:
        """What this seed does not reach, of what the demo claims."""
        sft, grpo = self.sft["value"], self.grpo["value"]
        chance = 0.25
        other = self.other_video
        claims = {
            "SFT accuracy in 0.35–0.60": 0.35 <= sft <= 0.60,
            "SFT format ≥ 0.95": self.sft_format >= 0.95,
            "GRPO accuracy ≥ 0.70": grpo >= 0.70,
            "GRPO ≥ 0.25 above SFT": grpo - sft >= 0.25,
            "shuffled ≥ 0.25 below ordered": grpo - self.shuffled["value"] >= 0.25,
            "another video: chance": other["low"] - 0.05 <= chance <= other["high"] + 0.05,
            "permuted rewards gain < 0.05": self.control["value"] - sft < 0.05,
            "at least 512 test videos": self.grpo["n"] >= 512,
        }
        return [f"seed {self.seed}: {claim}" for claim, holds in claims.items() if not holds]


def vthink_run(workspace: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of the demo; its summary."""
    command = [sys.executable, "-m", "vthink.pipelines.cli.main", "run", "--preset", "laptop"]
    command += ["--workspace", str(workspace), *(part for text in overrides for part in ("--set", text))]
    print("$ vthink", *command[3:], flush=True)
    code = subprocess.run(command, check=False).returncode
    if code not in (0, REFUSED):
        raise SystemExit(code)
    summary: dict[str, Any] = json.loads((workspace / "summary.json").read_text("utf-8"))
    return summary


def measure(seed: int, folder: Path, overrides: Sequence[str]) -> Row:
    """The demo with this seed, and its control."""
    workspace = folder / f"seed-{seed}"
    own = [f"seed={seed}", *overrides]
    summary = vthink_run(workspace, own)
    # Led astray, it may lose all signal, at which a training ends with an error; here it has to go on.
    astray = ["name=control", "grpo.permute_rewards=true", "grpo.max_steps_without_signal=1000000"]
    control = vthink_run(workspace, [*own, *astray])

    def of(models: Mapping[str, Any], model: str, frames: str = "ordered", metric: str = "accuracy") -> Any:
        return models[model][frames]["by_kind"][KIND][metric]

    models = summary["models"]
    return Row(
        seed=seed,
        sft=of(models, "sft"),
        sft_format=of(models, "sft", metric="format_rate")["value"],
        grpo=of(models, "grpo"),
        shuffled=of(models, "grpo", "shuffled"),
        other_video=of(models, "grpo", "other_video"),
        control=of(control["models"], "grpo"),
        minutes=sum(about["work_seconds"] or 0 for about in summary["stages"].values()) / 60,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table, with date and machine."""

    def cell(estimate: Mapping[str, float]) -> str:
        return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"

    heading = (
        "| seed | SFT | format | GRPO | gain | frames shuffled | another video | rewards permuted | minutes |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| {row.seed} | {cell(row.sft)} | {row.sft_format:.2f} | {cell(row.grpo)} "
        f"| +{row.grpo['value'] - row.sft['value']:.2f} | {cell(row.shuffled)} | {cell(row.other_video)} "
        f"| {cell(row.control)} | {row.minutes:.0f} |\n"
        for row in rows
    ]
    count = int(rows[0].grpo["n"])
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    return (
        f"Accuracy on the direction questions of {count} videos that were not trained on, with 95 % intervals; chance "
        f"is 0.25. Shuffled frames and another video's pixels are shown to the GRPO model; for the control, GRPO was "
        f"given rewards permuted within each group. Measured with `make seeds` on {today} ({machine}).\n\n"
        f"{heading}{''.join(lines)}"
    )


def put(readme: Path, table: str) -> None:
    """Write the table between the markers of a file."""
    begin, end = "<!-- seeds: begin -->", "<!-- seeds: end -->"
    before, _, rest = readme.read_text("utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{readme}: no '{begin}' … '{end}'")
    readme.write_text(f"{before}{begin}\n{table}{end}{after}", "utf-8")


def main() -> None:
    """Run the bench; exit code 1 when a seed falls short of what the demo claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path(".vthink/seeds"))
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    rows = [measure(seed, given.folder, given.overrides) for seed in given.seeds]
    table = markdown(rows)
    print(table)
    if given.readme:
        put(given.readme, table)
    shortfalls = [text for row in rows for text in row.shortfalls]
    if shortfalls:
        raise SystemExit("falls short of the claims:\n" + "\n".join(shortfalls))


if __name__ == "__main__":
    main()
