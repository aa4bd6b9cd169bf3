"""Write the figures of `.vthink/bench.json` into the benchmark page, as tables and a plot, between its markers.

make bench && .venv/bin/python tests/bench/page.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "README.md"
PLOT = HERE / "growth.svg"


def table(entries: list[dict[str, Any]]) -> str:
    """A Markdown table; a column is left out when no entry has it."""
    rows = [
        {
            "": entry["name"].split("/", 1)[1],
            "plain": _seconds(entry["plain_seconds"]),
            "own": _seconds(entry["own_seconds"]),
            "ratio": f"{entry['ratio']:.2f}×" if entry["ratio"] else "",
            "wanted": f"≥ {entry['wanted_ratio']:g}×" if entry["wanted_ratio"] else "",
            "peak memory, plain": _mib(entry["plain_peak_mib"]),
            "own ": _mib(entry["own_peak_mib"]),
        }
        | {
            name.replace("_", " "): f"{value:.3g}" if isinstance(value, float) else str(value)
            for name, value in entry["extra"].items()
        }
        for entry in entries
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if any(row.get(name) for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row.get(name, "") for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} s"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MiB"


def plot(entries: list[dict[str, Any]], path: Path) -> None:
    """Step time and peak memory of a log-probability forward and backward pass over P and over G."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vthink"  # the same figures give the same file
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    cases = [e for e in entries if e["name"].startswith("grpo/log_probs/") and e["setting"]["hidden"] == 64]
    cases = [e for e in cases if e["setting"]["family"] == "qwen2_5_vl" and e["setting"]["C"] == 64]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    for column, (axis, fixed, value) in enumerate((("P", "G", 8), ("G", "P", 1024))):
        chosen = sorted((e for e in cases if e["setting"][fixed] == value), key=lambda e: e["setting"][axis])
        x = [e["setting"][axis] for e in chosen]
        for row, (what, label) in enumerate((("seconds", "forward + backward, s"), ("peak_mib", "peak memory, MiB"))):
            for way in ("plain", "own"):
                axes[row, column].loglog(x, [e[f"{way}_{what}"] for e in chosen], "o-", label=way)
            axes[row, column].set_xlabel(f"{axis} ({fixed} = {value}, C = 64)")
            axes[row, column].set_ylabel(label)
            axes[row, column].grid(alpha=0.3)
            axes[row, column].set_xticks(x, [str(number) for number in x])
            axes[row, column].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes[row, column].yaxis.set_major_formatter("{x:g}")
            axes[row, column].minorticks_off()
    axes[0, 0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read, write."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".vthink/bench.json")
    entries = json.loads(source.read_text("utf-8"))
    topics: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        topics.setdefault(entry["name"].split("/", 1)[0], []).append(entry)
    text = PAGE.read_text("utf-8")
    for topic, chosen in topics.items():
        start, stop = f"<!-- {topic}: begin -->\n", f"<!-- {topic}: end -->"
        head, found, rest = text.partition(start)
        _, closed, tail = rest.partition(stop)
        if found and closed:
            about = f"Measured on {chosen[-1]['date']} ({chosen[-1]['machine']}).\n\n"
            picture = f"\n![step time and peak memory over P and over G]({PLOT.name})\n" if topic == "grpo" else ""
            text = head + start + about + table(chosen) + picture + stop + tail
        else:
            print(f"{PAGE.name} has no place for '{topic}': add its markers", file=sys.stderr)
    PAGE.write_text(text, "utf-8")
    if "grpo" in topics:
        plot(topics["grpo"], PLOT)


if __name__ == "__main__":
    main()
