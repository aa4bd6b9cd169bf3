"""The stage ``gate``: may this candidate go into service?

The verdict depends on which version is the champion, so that version is part of its fingerprint: after another has gone
into service the same candidate is judged anew.
"""

from __future__ import annotations

import time

from ... import __version__
from ..common.context import RunContext
from ..common.launch.process import end_with_owner
from ..common.provenance import git_commit
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.run import Tracker
from .champion import Champion, find_champion
from .config import EvaluationConfig
from .finished import EvaluationManifest
from .verdict import Results, judge


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
    end_with_owner()
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
            verdict = judge(config.gate, _models(storage, evaluation, champion), config.resampling)
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


def _models(storage: Storage, evaluation: Manifest, champion: Champion | None) -> dict[str, Results]:
    """Results by model: those of the evaluation, its last one also as ``candidate``, and the champion's."""
    results, candidate = EvaluationManifest(evaluation).results(storage)
    models = {name: {one.benchmark: one for one in measured} for name, measured in results.items()}
    models["candidate"] = models[candidate]
    if champion is not None:
        theirs, name = EvaluationManifest.read(storage, champion.evaluation_uri).results(storage)
        models["champion"] = {one.benchmark: one for one in theirs[name]}
    return dict(models)
