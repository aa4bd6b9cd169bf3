"""Models in the object store."""

import threading
from pathlib import Path

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import ModelConfig, TinyModelConfig
from vthink.components.common.model.folder import ModelCard, save_model
from vthink.components.common.model.load import load_model
from vthink.components.common.model.store import ensure_base_model, fetch_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.config import VideoConfig

VIDEO = VideoConfig()


@pytest.mark.parametrize(("family", "multiple"), [("qwen2_5_vl", 28), ("qwen3_vl", 32)])
def test_a_base_model_goes_to_the_store_once_and_comes_back_the_same(
    storage: Storage, tmp_path: Path, family: str, multiple: int
) -> None:
    config = ModelConfig(tiny=TinyModelConfig(family=family), prompt="compact/1")  # type: ignore[arg-type]
    video = VideoConfig(size_multiple=multiple)
    uri = ensure_base_model(storage, config, video)
    assert uri.endswith("/")
    listed = sorted((o.uri, o.size) for o in storage.list(uri))
    assert ensure_base_model(storage, config, video) == uri
    assert sorted((o.uri, o.size) for o in storage.list(uri)) == listed
    loaded = load_model(fetch_model(storage, uri, tmp_path))
    built, _ = build_tiny(config.tiny, video, config.seed)
    for (name, expected), found in zip(built.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(expected, found), name
    assert (loaded.card.prompt, loaded.video) == ("compact/1", video)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name, _ in listed)


def test_another_configuration_is_another_prefix(storage: Storage) -> None:
    uris = {ensure_base_model(storage, ModelConfig(seed=seed), VIDEO) for seed in (0, 1)}
    uris.add(ensure_base_model(storage, ModelConfig(prompt="compact/1"), VIDEO))
    assert len(uris) == 3


def test_a_process_that_is_not_the_first_waits_for_the_base_model(storage: Storage, tmp_path: Path) -> None:
    """On several nodes: each bringing it, one would find the other's half."""
    bringing = threading.Timer(1.0, ensure_base_model, (storage, ModelConfig(), VIDEO))
    bringing.start()
    uri = ensure_base_model(storage, ModelConfig(), VIDEO, wait_s=60)
    assert storage.is_complete(uri)
    bringing.join()
    with pytest.raises(UserError, match=r"did not bring the base model within 0\.6 s"):
        ensure_base_model(storage, ModelConfig(seed=1), VIDEO, wait_s=0.6)
    assert [info.uri for info in storage.list(storage.config.root_uri) if not info.uri.startswith(uri)] == []


def test_a_local_folder_and_an_s3_prefix_are_base_models_too(storage: Storage, tmp_path: Path) -> None:
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 3)
    save_model(tmp_path / "mine", model, processor, ModelCard(prompt="compact/1", video=VIDEO))
    (tmp_path / "mine" / "optimizer.pt").write_bytes(b"pickled")
    uri = ensure_base_model(storage, ModelConfig(name=str(tmp_path / "mine")), VIDEO)
    again = ensure_base_model(storage, ModelConfig(name=uri), VIDEO)
    for prefix in (uri, again):
        names = {o.uri.removeprefix(prefix) for o in storage.list(prefix)}
        assert "model.safetensors" in names
        assert "optimizer.pt" not in names
    with pytest.raises(UserError, match="nothing there"):
        ensure_base_model(storage, ModelConfig(name="s3://vthink-test/no/such/"), VIDEO)


def test_an_unreachable_hub_model_is_one_clear_line(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neither a folder here nor reachable on the hub") as caught:
        ensure_base_model(storage, ModelConfig(name="no-such-org/no-such-model"), VIDEO)
    assert "\n" not in str(caught.value)
