import json
import threading
from pathlib import Path

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import ModelConfig, TinyModelConfig
from vthink.components.common.model.folder import FAMILIES, check_folder, read_card, save_model
from vthink.components.common.model.load import load_model
from vthink.components.common.model.patch_embedding import PatchEmbedding
from vthink.components.common.model.store import ensure_base_model, fetch_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.config import VideoConfig

VIDEO = VideoConfig()


def test_the_same_seed_gives_the_same_tiny_model_and_another_seed_another() -> None:
    first, again, other = (build_tiny(TinyModelConfig(), VIDEO, seed)[0] for seed in (0, 0, 1))
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_damaged_weights_are_one_clear_error(tmp_path: Path) -> None:
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    save_model(tmp_path / "m", model, processor, {"prompt": "compact/1", "video": VIDEO})
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path / "m")


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
    assert (loaded.prompt, loaded.video) == ("compact/1", video)
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
    save_model(tmp_path / "mine", model, processor, {"prompt": "compact/1", "video": VIDEO})
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


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    save_model(tmp_path / "m", model, processor, {"prompt": "compact/1", "video": VIDEO})
    load_model(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):  # it contradicts its own layer_types
        load_model(tmp_path / "m")
    del config["text_config"]["layer_types"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weights missing"):
        load_model(tmp_path / "m")


def test_a_model_without_its_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no vthink\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_are_embedded_by_a_product_as_by_the_convolution(tmp_path: Path, family: str) -> None:
    video = VideoConfig(size_multiple=28 if family == "qwen2_5_vl" else 32)
    model, processor = build_tiny(TinyModelConfig(family=family), video, 0)
    save_model(tmp_path, model, processor, {"prompt": "compact/1", "video": video})
    ours = load_model(tmp_path).model.train()
    assert type(ours.model.visual.patch_embed.proj) is PatchEmbedding
    assert ours.state_dict().keys() == model.state_dict().keys()
    config = model.config.vision_config
    grid = torch.tensor([[2, 4, 8], [1, 6, 4]])
    size = 3 * config.temporal_patch_size * config.patch_size**2
    pixels = torch.randn(int(grid.prod(1).sum()), size, generator=torch.Generator().manual_seed(0))
    features, gradients = [], []
    for tower in (model.train().model.visual, ours.model.visual):
        found = tower(pixels, grid_thw=grid)
        features.append(torch.cat([found.pooler_output, *getattr(found, "deepstack_features", [])]))
        features[-1].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in tower.named_parameters()})
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=1e-5)
    assert "patch_embed.proj.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        assert float((gradients[1][name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    # The control: the weights taken in another order are seen.
    ours.model.visual.patch_embed.proj.weight.data = ours.model.visual.patch_embed.proj.weight.data.flip(-1)
    assert not torch.allclose(ours.model.visual(pixels, grid_thw=grid).pooler_output, found.pooler_output, rtol=1e-2)
