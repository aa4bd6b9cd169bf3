"""The KFP components of evaluation: the measurement, which needs a GPU for real models, and the gate."""

import os

from kfp import dsl

IMAGE = os.environ.get("VTHINK_IMAGE_EVALUATE", "ghcr.io/vthink/vthink-evaluate-python:0.1.0")
GATE_IMAGE = os.environ.get("VTHINK_IMAGE_CONTROL", "ghcr.io/vthink/vthink-control-python:0.1.0")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    run: str,
    config: str,
    model: str,
    data: str,
    sft: str,
    grpo: str,
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Measure base, SFT and GRPO side by side on the held-out split.

    Args:
        run: RunContext as JSON.
        config: EvaluationConfig as JSON.
        model: ModelConfig of the base model as JSON.
        data: URI of the prepared data's manifest.
        sft: URI of SFT's manifest, or empty.
        grpo: URI of GRPO's manifest, or empty.
        report: the HTML report.
        metrics: every metric.

    Returns:
        URI of the stage's manifest.
    """
    from vthink.components.evaluation.evaluate import evaluate_models

    return evaluate_models(run, config, model, data, sft, grpo, report.path, metrics.log_metric)


@dsl.component(base_image=GATE_IMAGE, install_kfp_package=False)
def gate(run: str, config: str, evaluation: str) -> str:
    """Judge whether the candidate may go into service.

    Args:
        run: RunContext as JSON.
        config: EvaluationConfig as JSON.
        evaluation: URI of the evaluation's manifest.

    Returns:
        ``pass`` or ``fail``.
    """
    from vthink.components.evaluation.gate import judge_candidate

    return judge_candidate(run, config, evaluation)
