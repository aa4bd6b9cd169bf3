"""The KFP components of data preparation.

KFP reads the annotations of the pipeline below as objects, so there is no ``from __future__ import annotations``.
"""

import subprocess
import sys
from pathlib import Path

from kfp import compiler, dsl, local
from vthink.components.common.storage.manifest import Manifest
from vthink.components.data_prep import component

from .conftest import Run, Source, rows_of


@dsl.pipeline(name="prepare")
def pipeline(run: str, config: str, video: str) -> str:
    plan = component.plan_data(run=run, config=config, video=video)
    with dsl.ParallelFor(plan.output) as shard:
        part = component.prepare_shard(run=run, config=config, video=video, shard=shard)
    merged = component.merge_data(run=run, config=config, video=video, shards=dsl.Collected(part.output))
    return merged.outputs["Output"]


def test_the_components_compile(tmp_path: Path) -> None:
    compiler.Compiler().compile(pipeline, str(tmp_path / "pipeline.yaml"))
    text = (tmp_path / "pipeline.yaml").read_text()
    assert "pip install" not in text
    assert component.IMAGE in text


def test_the_components_run_under_kfp_local(run: Run, source: Source, tmp_path: Path) -> None:
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "kfp"))
    arguments = run.arguments(source(rows_of(4)), shards=2)
    task = pipeline(**dict(zip(("run", "config", "video"), arguments, strict=True)))
    assert Manifest.read(run.storage, task.output).counts["rows_out"] == 4


def test_importing_configuration_and_components_loads_no_ml_library() -> None:
    script = (
        "import sys, vthink.components.data_prep.config, vthink.components.data_prep.component\n"
        "print({'torch', 'transformers', 'av', 'decord', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
