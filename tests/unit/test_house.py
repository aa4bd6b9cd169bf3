"""The rules of the house that no linter knows. Each check has a twin on a made-up tree that shows that it can fail."""

from __future__ import annotations

import ast
import graphlib
import json
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("components", "pipelines")
MOST_LINES, MANY_LINES, USUAL_LINES = 500, 400, 200
"""No file has more, nine in ten have no more, half of them have no more."""
HEAVY = [
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "deepspeed",
    "datasets",
    "kfp",
    "mlflow",
    "boto3",
    "kserve",
    "decord",
    "vllm",
]


def sources(root: Path) -> dict[str, Path]:
    """The product's modules by their full name, ``vthink`` included."""
    found = {"vthink": root / "__init__.py"} if (root / "__init__.py").exists() else {}
    for path in sorted(path for top in PRODUCT for path in (root / top).rglob("*.py")):
        parts = ["vthink", *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@pytest.fixture
def made_up(tmp_path: Path):
    """A tree of files, given by their text."""

    def make(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


# --- sizes


def oversize(root: Path) -> list[str]:
    """What is wrong with the sizes of the files."""
    sizes = {name: len(path.read_text("utf-8").splitlines()) for name, path in sources(root).items()}
    written = sorted(size for size in sizes.values() if size)
    wrong = [f"{name} has {size} lines" for name, size in sizes.items() if size > MOST_LINES]
    if written[len(written) * 9 // 10] > MANY_LINES:
        wrong.append(f"nine in ten files have up to {written[len(written) * 9 // 10]} lines")
    if statistics.median(written) > USUAL_LINES:
        wrong.append(f"the median file has {statistics.median(written):g} lines")
    return wrong


def test_no_file_is_too_long_to_be_read():
    assert oversize(ROOT) == []


def test_long_files_would_be_noticed(made_up):
    root = made_up(components__short="a = 1\n" * 300, components__long="a = 1\n" * 501)
    assert oversize(root) == [
        "vthink.components.long has 501 lines",
        "nine in ten files have up to 501 lines",
        "the median file has 400.5 lines",
    ]


# --- circles


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The product's modules that a file imports, within functions too, but not for types alone."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return (found & known) - {name}


def circle(root: Path) -> list[str]:
    """Modules that import one another in a circle; empty where none do."""
    modules = sources(root)
    graph = {name: imports(name, path, set(modules)) for name, path in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_one_another_in_a_circle():
    assert circle(ROOT) == []


def test_a_circle_would_be_noticed_within_functions_and_not_for_types(made_up):
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a\n"
    root = made_up(components__a="from .b import x\n", components__b=types)
    assert circle(root) == []
    made_up(components__b="def f():\n    from ..pipelines import c\n", pipelines__c="import vthink.components.a\n")
    assert set(circle(root)) == {"vthink.components.a", "vthink.components.b", "vthink.pipelines.c"}


# --- what an import does to a process

STATE = "json.dumps([list(map(repr, sys.meta_path)), gc.isenabled(), gc.get_threshold(), sorted(sys.modules)])"


def changed_by(statement: str) -> tuple[bool, set[str]]:
    """Whether a statement changes how the process imports or collects garbage, and the modules it loads."""
    code = f"import gc, json, sys; print({STATE}); {statement}; print({STATE})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(json.loads, done.stdout.splitlines())
    return before[:3] != after[:3], set(after[3]) - set(before[3])


def test_importing_vthink_changes_nothing_in_the_process():
    changed, loaded = changed_by("import vthink")
    assert not changed
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
    assert loaded <= {"vthink", "__future__"}


@pytest.mark.parametrize("statement", ["gc.disable()", "sys.meta_path.insert(0, type('Hook', (), {}))"])
def test_a_change_of_the_process_would_be_noticed(statement: str):
    assert changed_by(statement)[0]


def test_a_heavy_import_would_be_noticed():
    assert "boto3" in changed_by("import boto3")[1]


# --- patches of other libraries

SETTINGS = ("torch.backends.",)
"""Attributes that libraries offer as settings."""
OWN_PROCESSES = ("components/common/training/worker.py",)
"""Files that only begin a process of ours, and may say there how it collects garbage."""


def patches(path: Path) -> Iterator[str]:
    """Where a file changes something of another library, or of the interpreter, for the whole process."""
    tree = ast.parse(path.read_text("utf-8"))
    foreign = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] != "vthink":
            foreign |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def is_foreign(node: ast.AST) -> bool:
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return isinstance(node, ast.Name) and node.id in foreign

    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("setattr", "delattr") and is_foreign(node.args[0]):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            if called in ("gc.disable", "gc.freeze", "gc.set_threshold"):
                yield f"{path.name}:{node.lineno}: {called}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.meta_path", "sys.path_hooks"):
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for target in targets:
            text = ast.unparse(target)
            module = isinstance(target, ast.Subscript) and text.startswith("sys.modules[")
            if (module or (isinstance(target, ast.Attribute) and is_foreign(target))) and not text.startswith(SETTINGS):
                yield f"{path.name}:{node.lineno}: {text}"


def test_only_compat_patches_other_libraries():
    compat = ROOT / "components" / "common" / "compat"
    own = [ROOT / path for path in OWN_PROCESSES]
    files = [path for path in sources(ROOT).values() if compat not in path.parents and path not in own]
    assert [patch for path in files for patch in patches(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load = print",
        "from transformers import modeling_utils as m\ndef f():\n    m.PreTrainedModel.forward = print",
        "import trl.trainer\nsetattr(trl.trainer, 'x', 1)",
        "import gc\ngc.disable()",
        "import sys\nsys.meta_path.insert(0, None)",
        "import sys\nsys.modules['sklearn'] = None",
        "from kfp import dsl\ndel dsl.If",
    ],
)
def test_a_patch_would_be_noticed(made_up, code: str):
    assert len(list(patches(made_up(components__x=code) / "components" / "x.py"))) == 1


def test_objects_of_our_own_and_settings_are_no_patches(made_up):
    code = "import torch\nmodel = torch.nn.Linear(1, 1)\nmodel.x = 1\ntorch.backends.cudnn.benchmark = True\n"
    assert list(patches(made_up(components__x=code) / "components" / "x.py")) == []


# --- the packages that are installed


def undeclared(root: Path) -> set[str]:
    """Folders with files of the product that ``packages`` in pyproject.toml lacks, and those that it has in vain."""
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for top in PRODUCT for path in (root / top).rglob("*") if path.is_file()}
    held = {
        ".".join(["vthink", *folder.relative_to(root).parts]) for folder in folders if "__pycache__" not in str(folder)
    }
    return held.symmetric_difference(declared) - {"vthink"}


def test_every_folder_is_installed():
    assert undeclared(ROOT) == set()


def test_a_folder_that_is_not_installed_would_be_noticed(made_up):
    root = made_up(components__grpo__losses="")
    (root / "pyproject.toml").write_text('[tool.setuptools]\npackages = ["vthink", "vthink.components.sft"]\n')
    assert undeclared(root) == {"vthink.components.grpo", "vthink.components.sft"}
