"""``vthink data validate`` on files as data sets publish them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner
from vthink.components.common.rows.files import read_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.data_prep.config import SynthesizeConfig
from vthink.components.data_prep.world.synthesize import synthesize
from vthink.pipelines.cli.main import app
from vthink.tests.fakes.foreign_rows import write_rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    synthesize(SynthesizeConfig(num_train=4, num_validation=1, num_test=1), folder)
    return folder


def validate(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "validate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_world_and_published_formats_load_through_the_same_command(world: Path) -> None:
    # Published training sets are one split; that a world's videos are in three is what they cannot say.
    samples = [s for s in read_samples(world / "rows.jsonl") if isinstance(s, Sample) and s.split == "train"]
    samples = [s.model_copy(update={"source": "squares"}) for s in samples]
    for name, suffix in (("video_r1", ".json"), ("video_thinker", ".json"), ("plain", ".csv")):
        write_rows(world / f"{name}{suffix}", samples, name)
    files = ["rows.jsonl", "video_r1.json", "video_thinker.json", "plain.csv"]
    code, output = validate(*(world / file for file in files))
    assert code == 0, output
    for file, name in zip(files, ("vthink", "video_r1", "video_thinker", "plain"), strict=True):
        count = 6 if name == "vthink" else len(samples)
        assert f"{file}: {count} rows are fine, 0 are not (format {name})" in output
    assert f"types: multiple_choice {len(samples)}; sources: squares {len(samples)}; splits: train" in output


def test_a_published_vrbench_file_loads_with_its_videos_below_a_root(world: Path, tmp_path: Path) -> None:
    path = os.environ.get("VTHINK_VRBENCH_SAMPLE")
    if not path:
        pytest.skip("VTHINK_VRBENCH_SAMPLE names no file")
    video = next(world.glob("videos/*.mp4"))
    (tmp_path / "VRBench/videos/v001").mkdir(parents=True)
    shutil.copy(video, tmp_path / "VRBench/videos/v001/TZk_p-q8Fzo.mp4")
    code, output = validate(path, "--root", f"VRBench={tmp_path}", "--show", "2")
    assert code == 1
    assert "7 rows are fine, 6 are not (format vrbench)" in output
    assert "videos and images: 2, of which 1 are missing" in output
    assert f"{path}:2: {tmp_path}/VRBench/videos/v001/eb5vwy4GSSs.mp4: there is no such file" in output
    assert f"{path}: and 4 more" in output


def test_mistakes_are_told_with_file_and_line_and_the_exit_code_is_1(world: Path) -> None:
    samples = [s for s in read_samples(world / "rows.jsonl") if isinstance(s, Sample) and s.split == "train"]
    write_rows(world / "bad.json", samples, "video_r1")
    text = (world / "bad.json").read_text().replace("<answer>", "<answer>no such option, ", 1)
    (world / "bad.json").write_text(text)
    code, output = validate(world / "bad.json")
    assert code == 1
    assert f"{world}/bad.json:2: the answer 'no such option" in output
    code, output = validate(world / "rows.jsonl", "--format", "video_r1")
    assert code == 1
    assert "not a row of video_r1" in output


@mock.patch.dict(os.environ)  # the command names its own store there
def test_a_page_is_written_where_most_rows_are_in_quarantine_and_says_why(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "VTHINK_S3", "VTHINK_STORAGE")):
            monkeypatch.delenv(name)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # MLflow's, which keeps the keys of the tests before
    rows = (world / "rows.jsonl").read_text().splitlines()
    lost = [json.loads(row) for row in rows]
    for number, row in enumerate(lost):
        row |= {"id": f"lost-{number}", "media": {**row["media"], "uri": f"videos/lost-{number}.mp4", "sha256": None}}
    (world / "lost.jsonl").write_text("\n".join([*rows, *map(json.dumps, lost)]) + "\n")
    page, workspace = tmp_path / "data.html", tmp_path / ".vthink"
    command = ["data", "report", str(world / "lost.jsonl"), "-o", str(page), "--workspace", str(workspace)]
    result = CliRunner().invoke(app, [*command, "--set", "data.workers=1"])
    assert result.exit_code == 0, (result.output, result.exception)
    text = page.read_text("utf-8")
    assert "there is no such file" in text
    assert "lost-0.mp4" in text
