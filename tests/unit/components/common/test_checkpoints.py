from pathlib import Path

import pytest
import torch
from vthink.components.common.checkpoints import CheckpointStore, load_weights
from vthink.components.common.config import TinyModelConfig, VideoConfig
from vthink.components.common.models import ModelError, build_tiny
from vthink.components.common.storage import Storage


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


def test_a_failed_upload_is_reported_when_it_is_waited_for(store: CheckpointStore) -> None:
    store.upload(store.folder / "checkpoint-404")
    with pytest.raises(Exception, match="checkpoint-404"):
        store.wait()


def test_loading_weights_loads_all_of_them_or_refuses(tmp_path: Path) -> None:
    video = VideoConfig()
    saved, _ = build_tiny(TinyModelConfig(), video, 1)
    saved.save_pretrained(tmp_path / "saved")
    model, _ = build_tiny(TinyModelConfig(), video, 2)
    load_weights(model, tmp_path / "saved")
    for (name, expected), found in zip(saved.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(expected, found), name
    deeper, _ = build_tiny(TinyModelConfig(num_layers=3), video, 2)
    with pytest.raises((ModelError, RuntimeError)):
        load_weights(deeper, tmp_path / "saved")
