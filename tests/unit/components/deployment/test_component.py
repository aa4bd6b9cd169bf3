import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl
from vthink.components.deployment.component import deploy, register


def test_components_compile_with_strings_in_and_one_string_out(tmp_path: Path) -> None:
    @dsl.pipeline(name="deployment")
    def pipeline(run: str, config: str, model: str, evaluation: str, data: str) -> None:
        registered = register(run=run, config=config, model=model, evaluation=evaluation, data=data)
        deploy(run=run, config=config, registered=registered.output, evaluation=evaluation, data=data)

    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    components = yaml.safe_load(path.read_text())["components"]
    assert set(components) == {"comp-register", "comp-deploy"}
    for component in components.values():
        assert {p["parameterType"] for p in component["inputDefinitions"]["parameters"].values()} == {"STRING"}
        assert list(component["outputDefinitions"]["parameters"]) == ["Output"]


@pytest.mark.parametrize("module", ["component", "config", "registry", "deploy", "ask"])
def test_module_imports_neither_torch_nor_the_server(module: str) -> None:
    code = (
        f"import sys, vthink.components.deployment.{module}; "
        "print([m for m in ('torch', 'transformers', 'kserve', 'av', 'decord') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
