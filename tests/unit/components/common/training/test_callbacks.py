"""Checkpoints on their way to the store."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training.callbacks import CheckpointCallback
from vthink.components.common.training.checkpoints import CheckpointStore


def test_another_node_keeps_its_disk_from_filling_and_sends_its_part_first(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    store = CheckpointStore(storage, join(storage.config.root_uri, "checkpoints/"), tmp_path)
    args = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=1)
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "shard.bin").write_bytes(b"x" * step)
        best = str(tmp_path / "checkpoint-2") if step >= 2 else None
        state = SimpleNamespace(global_step=step, is_world_process_zero=False, best_model_checkpoint=best)
        CheckpointCallback(store).on_save(args, state, None)
    store.wait()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    parts = [join(store.prefix_uri, f"checkpoint-{step}/node-1-of-2/") for step in (1, 2, 3, 4)]
    assert all(storage.is_complete(part) for part in parts)
