"""Every error that a stage can raise from its configuration or rows is told before a run starts.

`LEDGER` lists all places of the stages' code that raise an error for a person; a new one must be entered: with the case
below that shows preflight to tell it, or with why it cannot be known before."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.answers.formats import write_response
from vthink.components.common.config import STAGES, ConfigError
from vthink.components.common.errors import UserError
from vthink.components.common.launch.backend import LocalBackend
from vthink.components.common.rows.files import read_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.data_prep.formats.read import read_rows
from vthink.components.data_prep.plan import mixture_shares
from vthink.components.data_prep.source import fetch_from_hub, open_source
from vthink.components.data_prep.validate import validate_rows
from vthink.components.evaluation.benchmarks.folder import Source
from vthink.pipelines.config import Config, load
from vthink.pipelines.preflight.evaluation import check_benchmarks, check_rewards
from vthink.pipelines.preflight.finding import Finding, finding
from vthink.pipelines.preflight.machine import check_accelerators, check_model
from vthink.pipelines.preflight.rows import examine_rows

COMPONENTS = Path(__file__).parents[4] / "components"
OWN = """
extends: laptop
model: {prompt: video_r1/1}
data: {holdout: {validation: 0.2, test: 0.2}}
deployment: {smoke_kinds: []}
sft: {validation: {kinds: []}}
grpo: {kinds: [], validation: {kinds: []}}
evaluation: {gate: []}
"""
ROW = {"question": "Which way?", "options": "left|right", "answer": "A", "reasoning": "It goes left."}
PLAIN = {key: value for key, value in ROW.items() if key != "reasoning"}


class Case:
    """A mistake in configuration or rows, and the words with which preflight tells it."""

    def __init__(
        self, says: str, *changes: str, row: dict[str, Any] = ROW, rows: int = 40, suffix: str = "mp4",
        text: str | None = None, name: str = "rows.jsonl", stage: Callable[[Config, Path], Any] | None = None,
    ) -> None:  # fmt: skip
        self.says, self.changes, self.row, self.rows = says, changes, row, rows
        self.suffix, self.text, self.name, self.stage = suffix, text, name, stage

    def told(self, folder: Path) -> tuple[Config | None, list[str]]:
        """The configuration, where it can be read, and all that preflight says of it and the rows."""
        for number in range(self.rows):
            (folder / f"{number}.{self.suffix}").write_bytes(b"x")
        rows = [{"path": f"{number}.{self.suffix}", **self.row} for number in range(self.rows)]
        text = "".join(json.dumps(row) + "\n" for row in rows) if self.text is None else self.text
        if self.name != "none.jsonl":
            (folder / self.name).write_text(text)
        (folder / "my.yaml").write_text(OWN)
        try:
            config = load(folder / "my.yaml", [f"data.source={folder / self.name}", *self.changes])
        except ConfigError as error:
            return None, [str(error)]
        stages = [name for name in STAGES if name not in ("sft", "grpo") or getattr(config, name).enabled]
        findings: list[Finding] = [
            *examine_rows(config, stages),
            finding("rewards", lambda: check_rewards(config)),
            finding("benchmarks", lambda: check_benchmarks(config, None)),
            finding("accelerators", lambda: check_accelerators(config, stages)),
        ]
        if config.model.name != "tiny":
            findings += [finding("model", lambda: check_model(config, None))]
        return config, [entry.detail for entry in findings if entry.verdict == "bad"]


def read(config: Config, folder: Path) -> list[Any]:
    section = config.data
    return list(read_rows(Path(section.source), section.format, section.roots, section.columns))


def write_all(config: Config, folder: Path) -> None:
    for _, sample in read(config, folder):
        write_response(sample, "video_r1")


def mixture(config: Config, folder: Path) -> None:
    mixture_shares({"mine": 0}, config.data)


def launch(config: Config, folder: Path) -> None:
    job: Any = type("Job", (), {"run": type("Run", (), {"launch": config.launch})})
    LocalBackend().train(job, print)


CASES = {
    # the configuration alone
    "key": Case("did you mean 'max_steps'", "sft.max_stps=1"),
    "reference": Case("no_module", 'grpo.rewards={extra: {"no_module:REWARD": 1}}'),
    "prompt": Case("model.prompt", "model.prompt=video_r2/1"),
    "condition": Case("unknown condition 'shufled'", "evaluation.conditions=[shufled]"),
    "rule's model": Case("leave the rule out", "sft.enabled=false", "evaluation.gate=[{metric: accuracy, above: sft}]"),
    "mix": Case("mix needs at least one kind", "data.synthesize.mix={direction: -1}"),
    # the source
    "no file": Case("there is no such file", name="none.jsonl",
                    stage=lambda config, folder: open_source(config.data.source, None, folder)),
    "suffix": Case("rows come as", name="rows.txt", stage=read),
    "hub": Case("expected hf://datasets/", "data.source=hf://mine", stage=lambda *_: fetch_from_hub("hf://mine")),
    "not a table": Case("not a readable table", name="rows.csv", text='path,question\n"0.mp4"x,"y\n', stage=read),
    "columns": Case("no column 'film'", "data.columns={video: film}", stage=read),
    "format": Case("no format fits", row={"a": 1}, text='{"a": 1}\n', stage=read),
    "no rows": Case("there are no rows in it", text="", rows=0),
    "damaged list": Case("a JSON list cannot be read beyond", name="rows.json", text='[{"path": "0.mp4"', stage=read),
    "parquet": Case("not a readable Parquet file", name="rows.parquet", text="PAR", stage=read),
    # the rows
    "bad rows": Case("rows cannot be used", row={"question": "?"}),
    "missing media": Case("40 of 40 rows cannot be used", row={**ROW, "path": "none.mp4"}),
    "weights": Case("no training row of", "data.weights={mine: 1}", stage=mixture),
    "pass rate": Case("in the split 'train'", "data.min_pass_rate=0.5", row={**ROW, "metadata": {"pass_rate": 0}}),
    "split": Case("no row is in the split 'validation'", "data.holdout={validation: 0, test: 0.2}"),
    "evaluated split": Case("no row is in the split 'quiz'", "evaluation.split=quiz"),
    "reasoning": Case("SFT can write no video_r1 response", row=PLAIN, stage=write_all),
    "kinds": Case("grpo.kinds: no row", "grpo.kinds=[direction]"),
    "images": Case("sft.images=false leaves no training row", "sft.images=false", suffix="png"),
    "rule's kind": Case("no row of the split 'test' is of the kind ocr",
                        "evaluation.gate=[{metric: accuracy, by_kind: ocr, above: base}]"),
    "rule's condition": Case("nothing can be asked of 0 videos", "evaluation.conditions=[shuffled]",
                             "evaluation.gate=[{metric: accuracy, above: shuffled}]", suffix="png"),
    "rule's metric": Case("miou applies to no row", "evaluation.gate=[{metric: miou, at_least: 0.1}]"),
    "rule's videos": Case("a comparison needs two videos", "evaluation.gate=[{metric: accuracy, above: base}]",
                          "data.holdout={}", rows=3,
                          text="".join(json.dumps({**ROW, "path": f"{n}.mp4", "split": split}) + "\n"
                                       for n, split in enumerate(("train", "validation", "test")))),
    "smoke": Case("deployment.smoke_kinds: no row", "deployment.smoke_kinds=[direction]"),
    "benchmark": Case("there is no such folder", "evaluation.benchmarks={video-holmes: none}",
                      stage=lambda *_: Source.open("none", None, Path())),
    # model, machine, stores
    "model": Case("neither a folder here nor reachable", "model.name=no-such/model"),
    "family": Case("no config.json", "model.name=FOLDER"),
    "size": Case("multiples of 28, and video.size_multiple is 32", "model.name=FAMILY", "video.size_multiple=32"),
    "nodes": Case("launch.nodes=2", "launch.nodes=2", stage=launch),
    "vllm": Case("grpo.vllm needs vLLM, which is not installed", "grpo.vllm={}", "grpo.temperature=1"),
    "gpus": Case("no NVIDIA GPU", "model.name=Qwen/Qwen2.5-VL-7B-Instruct"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_preflight_tells_what_a_stage_would_have_raised(name: str, folder: Path) -> None:
    case = CASES[name]
    if name in ("family", "size"):
        (folder / "model").mkdir()
        case.changes = tuple(c.replace("FOLDER", str(folder / "model")).replace("FAMILY", str(folder / "model"))
                             for c in case.changes)  # fmt: skip
    if name == "size":
        text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
        vision = {"hidden_size": 64, "depth": 1, "num_heads": 1, "intermediate_size": 64, "patch_size": 14}
        made = {"model_type": "qwen2_5_vl", **text, "intermediate_size": 64, "vocab_size": 9, "vision_config": vision}
        (folder / "model/config.json").write_text(json.dumps(made))
        (folder / "model/model.safetensors").write_bytes(b"")
    config, told = case.told(folder)
    assert any(case.says in line for line in told), told
    if case.stage is not None:
        assert config is not None
        with pytest.raises(UserError):
            case.stage(config, folder)


def test_rows_and_settings_without_a_mistake_are_told_nothing(folder: Path) -> None:
    rules = (
        "[{metric: accuracy, above: base}, {metric: accuracy, above: shuffled}, {metric: format_rate, at_least: 0.9}]"
    )
    case = Case("", f"evaluation.gate={rules}", "evaluation.conditions=[shuffled]", "data.weights={'*': 1}")
    assert case.told(folder)[1] == []


NOT_BEFORE = {
    "decode": "what a video holds is known when it is decoded; such rows are quarantined",
    "train": "what training comes to",
    "weights": "whether weights load is known when they are read",
    "store": "what lies in the store may change; it is written by stages themselves",
    "vllm": "what a vLLM that runs answers",
    "measured": "what an evaluation came to",
    "service": "what the registry and the served model say then",
    "machine": "processes and ports of this machine as they are then",
    "internal": "a caller's mistake, which no configuration makes",
    "not a run": "a command of its own, which no run of the pipeline calls",
}
LEDGER: dict[str, str] = {
    "common/answers/formats.py write_response": "reasoning",
    "common/chat_endpoint": "not a run",
    "common/compat/transformers.py": "weights",
    "common/config.py": "key",
    "common/launch/backend.py": "nodes",
    "common/launch/job.py": "train",
    "common/launch/kubernetes": "machine",
    "common/launch/process.py": "machine",
    "common/launch/workspace.py": "machine",
    "common/model/chat.py": "internal",
    "common/model/families.py": "family",
    "common/model/folder.py": "family",
    "common/model/generation.py": "train",
    "common/model/load.py": "weights",
    "common/model/prompts.py": "prompt",
    "common/model/shapes.py": "family",
    "common/model/store.py": "model",
    "common/registry.py": "reference",
    "common/rows/files.py": "parquet",
    "common/rows/prepared.py PreparedSet.split": "evaluated split",
    "common/rows/prepared.py": "store",
    "common/tracking/server.py": "not a run",
    "common/training/processes.py": "gpus",
    "common/training/trainer.py": "machine",
    "common/yaml_document.py": "key",
    "data_prep/curation": "not a run",
    "data_prep/dataset/writer.py": "store",
    "data_prep/formats/columns.py": "columns",
    "data_prep/formats/read.py read_objects": "suffix",
    "data_prep/formats/read.py _from_table": "not a table",
    "data_prep/formats/read.py read_rows": "format",
    "data_prep/merge.py merge_data": "internal",
    "data_prep/merge.py _refuse_bad_source": "bad rows",
    "data_prep/plan.py mixture_shares": "weights of rows",
    "data_prep/plan.py plan_data": "no rows",
    "data_prep/report": "not a run",
    "data_prep/source.py open_source": "no file",
    "data_prep/source.py fetch_from_hub": "hub",
    "data_prep/world/scenes.py": "mix",
    "deployment": "service",
    "evaluation/ask.py": "measured",
    "evaluation/benchmarks": "benchmark",
    "evaluation/conditions.py": "condition",
    "evaluation/evaluate.py evaluate_models": "rule's model",
    "evaluation/evaluate.py _held_out": "evaluated split",
    "evaluation/evaluate_benchmark.py": "not a run",
    "evaluation/gate.py find_champion": "service",
    "evaluation/gate.py _outcome": "rule's videos",
    "evaluation/gate.py _measured": "rule's condition",
    "evaluation/gate.py _check_agreement": "measured",
    "evaluation/item.py": "store",
    "evaluation/models.py": "not a run",
    "evaluation/results.py": "store",
    "evaluation/rules.py": "not a run",
    "evaluation/stored_answers.py": "not a run",
    "grpo/log_probs.py": "train",
    "grpo/losses.py": "internal",
    "grpo/rollouts.py": "train",
    "grpo/shared_prefix.py": "internal",
    "grpo/trainer.py": "train",
    "grpo/vllm/colocated.py ColocatedVLLM.__init__": "vllm",
    "grpo/vllm": "vllm",
}
"""A place (a folder, a file, or a function of one; the longest counts) → a case above, or a reason of `NOT_BEFORE`."""
CASE_OF = {"weights of rows": "weights"}  # where a case and a reason have the same name
RAISED = {"UserError", "ConfigError", "LaunchError", "ResponseError", "BlindInputError"}


def places() -> set[str]:
    """``file function`` of every place in the components that raises an error for a person."""
    raising = set[str]()

    def visit(node: ast.AST, file: str, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
            if isinstance(child, ast.Raise) and child.exc is not None:
                error = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
                if isinstance(error, ast.Name) and error.id in RAISED:
                    raising.add(f"{file} {name}")
            visit(child, file, inner)

    for path in COMPONENTS.rglob("*.py"):
        visit(ast.parse(path.read_text("utf-8")), path.relative_to(COMPONENTS).as_posix(), "")
    return raising


def entry(place: str) -> str | None:
    return max((key for key in LEDGER if place.startswith(key)), key=len, default=None)


def test_every_place_that_raises_an_error_for_a_person_is_in_the_ledger() -> None:
    raising = places()
    assert len(raising) > 60  # the walk sees them
    assert sorted(place for place in raising if entry(place) is None) == []
    assert sorted(set(LEDGER) - {entry(place) for place in raising}) == []
    assert set(LEDGER.values()) <= {*CASES, *NOT_BEFORE, *CASE_OF}


def test_a_place_that_is_not_in_the_ledger_would_be_noticed() -> None:
    assert entry("sft/train.py train_sft") is None


def test_rows_are_read_alike_before_and_in_the_run(folder: Path) -> None:
    Case("").told(folder)
    assert validate_rows(str(folder / "rows.jsonl")).ok
    assert not any(isinstance(row, Sample) for row in read_samples(folder / "rows.jsonl"))  # the plain format's own
