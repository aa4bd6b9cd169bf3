"""The first hour with one's own videos: from a folder and a table with mistakes to a served model, by the commands that
the tool itself printed."""

from __future__ import annotations

import csv
import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
from vthink.components.common.launch.process import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

MIX = "{direction: 1, order: 0, count: 0, ocr: 0, duration: 0, describe: 0}"
WORLD = {"num_train": 40, "num_validation": 0, "num_test": 0, "images": 0.0, "mix": MIX}


def printed(output: str) -> list[str]:
    """The commands of a ``next:`` list."""
    lines = output.partition("next:\n")[2].splitlines()
    return [line.strip().removeprefix("vthink ") for line in lines if line.strip().startswith("vthink ")]


def write_table(folder: Path) -> None:
    """Forty rows of forty mp4 files, as a spreadsheet has them, with three mistakes."""
    rows = [json.loads(line) for line in (folder / "world/rows.jsonl").read_text().splitlines()]
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Video", "Question", "Choices", "Label"])
        for number, row in enumerate(rows):
            cells = [f"world/{row['media']['uri']}", row["question"], "|".join(row["options"]), row["answer"]]
            if number == 3:
                cells[0] = "world/videos/none.mp4"
            if number == 7:
                cells[3] = "diagonally"
            table.writerow(cells[:3] if number == 11 else cells)


def test_an_hour_from_own_videos_to_a_served_model(demo, check):
    changes = [part for key, value in WORLD.items() for part in ("--set", f"data.synthesize.{key}={value}")]
    check(demo.vthink("data", "synthesize", "world", *changes))
    write_table(demo.folder)
    output = check(demo.vthink("init", "my.yaml", "--rows", "rows.csv"))
    validate, dry, run, serve = printed(output)
    assert (validate, serve) == ("data validate rows.csv", "serve")

    done = demo.vthink(*validate.split())
    assert done.returncode == 1
    assert re.findall(r"rows\.csv:(\d+): ", done.stdout) == ["5", "9", "13"]

    output = check(demo.vthink(*dry.split()))
    assert re.search(r"✓ rows: rows\.csv: .*; 3 of 40 cannot be used", output)
    output = check(demo.vthink(*run.split()))
    assert "alias champion" in output
    assert "champion: vthink/1" in check(demo.vthink("status"))

    port = free_port()
    process = demo.start(*serve.split(), "--port", str(port))  # the one that it printed, on a port that is free here
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                break
            except OSError:
                time.sleep(1)
        assert b"<html" in page
        video = next((demo.folder / "world/videos").glob("*.mp4"))
        check(demo.vthink("ask", f"http://127.0.0.1:{port}", str(video), "Which way?", "-o", "left", "-o", "right"))
    finally:
        process.terminate()
        printed_by_server, _ = process.communicate(timeout=60)
    assert f"page      http://127.0.0.1:{port}" in printed_by_server
    assert "curl" in printed_by_server
