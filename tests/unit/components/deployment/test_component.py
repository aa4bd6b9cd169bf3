import subprocess
import sys
from pathlib import Path

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


def heavy_after(*modules: str) -> str:
    """Which heavy packages a process has after importing modules one after another, by module."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('torch', 'transformers', 'kserve', 'av', 'decord') if m in sys.modules]\n"
        "    print(*(f'{name}: {m}' for m in heavy))\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_modules_import_neither_torch_nor_the_server() -> None:
    names = ("component", "config", "registry", "deploy", "ask")
    assert heavy_after(*(f"vthink.components.deployment.{name}" for name in names)) == ""


def test_a_heavy_import_would_be_noticed() -> None:
    assert heavy_after("json", "av") == "av: av"
