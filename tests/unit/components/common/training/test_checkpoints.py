"""Checkpoints on a real S3 server: which is the newest whole one, here or in the store, of one node or several."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training.checkpoints import CheckpointCallback, CheckpointStore


def write(folder: Path, step: int, text: str = "weights") -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "part").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_text(text)
    (checkpoint / "part" / "rng.pth").write_text(str(step))
    return checkpoint


@pytest.fixture
def store(storage: Storage, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(storage, f"{storage.config.root_uri}checkpoints/", tmp_path / "run")


def test_the_newest_whole_checkpoint_is_found_and_torn_ones_are_removed(store: CheckpointStore) -> None:
    assert store.newest() is None
    for step in (2, 10, 30):
        store.seal(write(store.folder, step))
    (store.folder / "checkpoint-30" / "model.safetensors").write_text("cut")  # killed while it was written again
    write(store.folder, 40)  # killed before it was sealed
    assert store.newest() == store.folder / "checkpoint-10"
    assert sorted(p.name for p in store.folder.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_on_a_new_machine_the_checkpoint_comes_from_the_store(store: CheckpointStore, tmp_path: Path) -> None:
    store.seal(write(store.folder, 5))
    store.upload(store.folder / "checkpoint-5")
    store.wait()
    elsewhere = CheckpointStore(store.storage, store.prefix_uri, tmp_path / "elsewhere")
    found = elsewhere.newest()
    assert found is not None
    assert CheckpointStore.is_sealed(found)
    assert (found / "part" / "rng.pth").read_text() == "5"


def test_a_half_uploaded_checkpoint_is_not_taken_for_a_whole_one(store: CheckpointStore, tmp_path: Path) -> None:
    store.seal(write(store.folder, 5))
    store.upload(store.folder / "checkpoint-5")
    store.wait()
    store.storage.write_bytes(f"{store.prefix_uri}checkpoint-9/model.safetensors", b"half")
    elsewhere = CheckpointStore(store.storage, store.prefix_uri, tmp_path / "elsewhere")
    found = elsewhere.newest()
    assert found is not None
    assert found.name == "checkpoint-5"


def test_pruning_deletes_only_checkpoints_that_are_not_kept(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        store.seal(write(store.folder, step))
        store.upload(store.folder / f"checkpoint-{step}")
    store.wait()
    store.prune(["checkpoint-3"])
    names = {o.uri.removeprefix(store.prefix_uri).split("/")[0] for o in store.storage.list(store.prefix_uri)}
    assert names == {"checkpoint-3"}


def test_a_failed_upload_is_reported_when_it_is_waited_for(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, uri: str) -> None:
        raise OSError(f"{uri}: away")

    monkeypatch.setattr(store.storage, "upload_dir", fail)
    store.upload(write(store.folder, 404))
    with pytest.raises(OSError, match="checkpoint-404/: away"):
        store.wait()


def test_a_checkpoint_that_is_deleted_while_it_is_sent_arrives_whole_and_nobody_waits(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``keep_checkpoints: 1`` the trainer deletes the last one before it calls anybody."""
    go, send = threading.Event(), store.storage.upload_dir

    def slow(path: Path, uri: str) -> Any:
        assert go.wait(30)
        return send(path, uri)

    monkeypatch.setattr(store.storage, "upload_dir", slow)
    args = SimpleNamespace(output_dir=str(store.folder), save_total_limit=1)
    for step in (1, 2):
        write(store.folder, step)
        if step > 1:
            shutil.rmtree(store.folder / f"checkpoint-{step - 1}")
        state = SimpleNamespace(global_step=step, is_world_process_zero=True, best_model_checkpoint=None)
        CheckpointCallback(store).on_save(args, state, None)  # as all ranks do together: it returns at once
    assert sorted(path.name for path in (store.folder / "sending").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    go.set()
    store.wait()
    assert store.storage.is_complete(f"{store.prefix_uri}checkpoint-2/")
    assert not list(store.storage.list(f"{store.prefix_uri}checkpoint-1/"))  # pruned, after it had arrived
    assert list((store.folder / "sending").iterdir()) == []


def test_a_checkpoint_of_several_nodes_counts_when_all_of_them_have_sent_theirs(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for node, name in ((0, "model.safetensors"), (1, "optimizer-shard-1")):
        monkeypatch.setenv("RANK", str(2 * node))
        sender = CheckpointStore(store.storage, store.prefix_uri, tmp_path / f"node-{node}")
        checkpoint = tmp_path / f"node-{node}" / "checkpoint-6"
        checkpoint.mkdir(parents=True)
        (checkpoint / name).write_text(name)
        sender.seal(checkpoint)
        assert store.newest() is None  # the control: not before the last one is there
        sender.upload(checkpoint)
        sender.wait()
    # It goes on on one node, with both parts; and on two, where neither's own folder is the whole.
    for world, folder in (("2", "alone"), ("4", "node-0")):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("RANK", "0")
        found = CheckpointStore(store.storage, store.prefix_uri, tmp_path / folder).newest()
        assert found is not None
        assert {"model.safetensors", "optimizer-shard-1"} <= {path.name for path in found.iterdir()}


def test_a_node_that_was_killed_while_it_sent_its_first_checkpoint_sends_it_again(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    checkpoint = write(store.folder, 6)
    store.seal(checkpoint)
    shutil.copytree(checkpoint, store.folder / "sending" / checkpoint.name)  # what the killed process left
    assert store.newest() is None  # of several nodes only what is in the store counts, and nothing is
    store.seal(write(store.folder, 6))
    store.upload(checkpoint)
    store.wait()
    assert store.storage.is_complete(f"{store.prefix_uri}checkpoint-6/node-0-of-2/")


def test_the_best_checkpoint_comes_along_to_a_new_machine(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (2, 4):
        checkpoint = store.folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        state = {"best_model_checkpoint": str(store.folder / "checkpoint-2")}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        store.seal(checkpoint)
        store.upload(checkpoint)
    store.wait()
    elsewhere = CheckpointStore(store.storage, store.prefix_uri, tmp_path / "elsewhere")
    found = elsewhere.newest()
    assert found == tmp_path / "elsewhere" / "checkpoint-4"
    best = Path(json.loads((found / "trainer_state.json").read_text())["best_model_checkpoint"])
    assert best == tmp_path / "elsewhere" / "checkpoint-2"
    assert CheckpointStore.is_sealed(best)


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
