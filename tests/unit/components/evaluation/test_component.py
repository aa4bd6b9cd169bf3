import subprocess
import sys

import pytest
import yaml
from kfp import compiler
from vthink.components.evaluation import component


@pytest.mark.parametrize("name", ["evaluate", "gate"])
def test_the_component_compiles(tmp_path, name):
    path = tmp_path / "component.yaml"
    compiler.Compiler().compile(getattr(component, name), str(path))
    spec = yaml.safe_load(path.read_text())
    (one,) = spec["components"].values()
    outputs = one["outputDefinitions"]
    if name == "gate":
        assert list(outputs) == ["parameters"]
        assert list(outputs["parameters"]) == ["Output"]  # exactly one: a condition reads it
    else:
        assert list(outputs["parameters"]) == ["Output"]
        assert sorted(outputs["artifacts"]) == ["metrics", "report"]
    (executor,) = spec["deploymentSpec"]["executors"].values()
    assert "python" in executor["container"]["image"]
    assert "pip install" not in str(executor["container"])


def test_components_and_configuration_import_without_torch_and_the_gate_without_the_data_packages():
    code = """
import sys
for name in ("torch", "transformers", "trl", "datasets", "pyarrow", "av", "decord", "PIL", "jiwer", "rouge_score"):
    sys.modules[name] = None
import vthink.components.evaluation.component, vthink.components.evaluation.config
import vthink.components.evaluation.gate, vthink.components.evaluation.evaluate, vthink.components.common.html.page
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
