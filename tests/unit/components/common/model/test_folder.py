"""What may be in a model folder."""

import json
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.model.folder import check_folder


def folder_with(path: Path, config: object, **files: bytes) -> Path:
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def test_unsafe_or_unsupported_folders_are_refused_with_the_reason(tmp_path: Path) -> None:
    good = {"model_type": "qwen2_5_vl"}
    cases = [
        (folder_with(tmp_path / "a", good, pytorch_model__bin=b"x"), "pytorch_model.bin, which can run code"),
        (folder_with(tmp_path / "b", good | {"auto_map": {}}, model__safetensors=b"x"), "never runs here"),
        (folder_with(tmp_path / "c", {"model_type": "llama"}, model__safetensors=b"x"), "'llama' is not supported"),
        (folder_with(tmp_path / "d", "{not json", model__safetensors=b"x"), "not a JSON object"),
        (folder_with(tmp_path / "e", [1], model__safetensors=b"x"), "not a JSON object"),
    ]
    for folder, reason in cases:
        with pytest.raises(UserError, match=reason):
            check_folder(folder)
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        check_folder(tmp_path / "f")
    check_folder(folder_with(tmp_path / "g", good, model__safetensors=b"x"))  # the control
