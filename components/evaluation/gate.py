"""The stage ``gate``: may this candidate go into service?

The verdict depends on which version is the champion, so that version is part of its fingerprint: after another has gone
into service the same candidate is judged anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from ... import __version__
from ..common.context import RunContext
from ..common.launch.process import die_with_owner
from ..common.provenance import git_commit
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.run import Tracker
from .champion import Champion, find_champion
from .config import EvaluationConfig
from .results import BenchmarkResult, parse_benchmark
from .verdict import HELD_OUT, Results, judge


def judge_candidate(run_json: str, config_json: str, evaluation_uri: str) -> str:
    """Judge the candidate of an evaluation.

    Args:
        run_json: `RunContext`.
        config_json: `EvaluationConfig`, whose ``gate`` holds the rules.
        evaluation_uri: manifest of the evaluation.

    Returns:
        ``pass`` or ``fail``.

    Raises:
        ConfigError: a rule with a mistake in it.
        UserError: a rule names what was not measured; the registry cannot be asked, or the champion does not say how it
            was evaluated; the store or something in it is not as expected.
    """
    started = time.monotonic()
    die_with_owner()
    context = RunContext.load(run_json, "run")
    config = EvaluationConfig.load(config_json, "evaluation")
    storage = Storage(context.storage)
    evaluation = Manifest.read(storage, evaluation_uri)
    champion = find_champion(context)
    rules = [rule.model_dump() for rule in config.gate]
    identity = fingerprint(
        "gate",
        rules,
        evaluation.fingerprint,
        None if champion is None else [champion.version, champion.evaluation_uri],
        context.redo.get("gate", 0),
        __version__,
    )
    prefix = stage_prefix(context, "gate", identity)
    manifest = Manifest.find(storage, prefix)
    if manifest is None:
        inputs = {"evaluation": evaluation_uri} | ({"champion": champion.evaluation_uri} if champion else {})
        version = champion.version if champion else None
        with Tracker.start(context, "gate", identity, {"gate": list(map(str, config.gate))}, inputs) as tracker:
            verdict = judge(config.gate, _models(storage, evaluation, champion), config)
            outcome = "pass" if verdict.passed else "fail"
            tracker.log_text("gate", "\n".join(verdict.lines) + "\n")
            tracker.set_tags({"vthink.gate": outcome, "vthink.champion": version or "none"})
            manifest = Manifest(
                stage="gate",
                fingerprint=identity,
                uri=prefix,
                inputs=inputs,
                counts={"rules": len(verdict.findings), "held": verdict.held},
                config={"gate": rules},
                details={"verdict": outcome, "lines": verdict.lines, "champion": version},
                mlflow_run_id=tracker.run_id,
                seconds=round(time.monotonic() - started, 3),
                git_commit=git_commit(),
            )
            manifest.write(storage)
    storage.write_json(gate_uri(context, evaluation_uri), {"manifest": manifest.manifest_uri})
    print(*manifest.details["lines"], sep="\n")
    return str(manifest.details["verdict"])


def gate_uri(context: RunContext, evaluation_uri: str) -> str:
    """Where a run's verdict on an evaluation is found: a JSON object with the gate's ``manifest``."""
    name = f"{context.run_id}-{fingerprint(evaluation_uri)}.json"
    return join(context.storage.root_uri, "gate", "verdicts", name)


def read_gate(storage: Storage, context: RunContext, evaluation_uri: str) -> Manifest:
    """The manifest of a run's verdict; ``details`` holds ``verdict``, ``lines`` and ``champion``."""
    return Manifest.read(storage, storage.read_json(gate_uri(context, evaluation_uri))["manifest"])


# -- reading what was evaluated -------------------------------------------------------------------------------


def _models(storage: Storage, evaluation: Manifest, champion: Champion | None) -> dict[str, Results]:
    """Results by model: those of the evaluation, its last one also as ``candidate``, and the champion's."""
    models, candidate = _read_evaluation(storage, evaluation)
    models["candidate"] = models[candidate]
    if champion is not None:
        theirs, name = _read_evaluation(storage, Manifest.read(storage, champion.evaluation_uri))
        models["champion"] = theirs[name]
    return models


def _read_evaluation(storage: Storage, manifest: Manifest) -> tuple[dict[str, Results], str]:
    """Results by model of a finished evaluation, and the name of its candidate."""
    result = storage.read_json(manifest.files["result"])
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in storage.read_bytes(manifest.files["items"]).decode().splitlines():
        row = json.loads(line)
        rows.setdefault(row["model"], {}).setdefault(row["frames"], []).append(row)
    models: dict[str, dict[str, BenchmarkResult]] = {}
    for name, about in result["models"].items():
        models[name] = {HELD_OUT: _held_out(name, about, result, rows.get(name, {}), manifest.uri)}
    for file, prefix in manifest.files.items():
        if file.startswith("benchmarks/"):
            name = file.split("/")[1]
            result_json, items = (storage.read_bytes(join(prefix, part)) for part in ("result.json", "items.jsonl"))
            measured = parse_benchmark(result_json, items, prefix, name)
            models[name][measured.benchmark] = measured
    return dict(models), str(result["candidate"])


def _held_out(
    name: str,
    about: Mapping[str, Any],
    result: Mapping[str, Any],
    rows: Mapping[str, list[dict[str, Any]]],
    where: str,
) -> BenchmarkResult:
    """A model on the held-out split, in the form of a benchmark."""
    settings = result["settings"]
    questions = [result["data"]["fingerprint"], result["split"], settings.get("max_items"), settings.get("seed")]
    described = {
        "benchmark": HELD_OUT,
        "settings": settings | {"questions": questions, "prompt": result.get("prompt")},
        "conditions": {condition: {**about[condition], "scores": {}} for condition in rows},
    }
    return BenchmarkResult(name, where, described, rows)
