"""Models in the object store."""

import tempfile
import time
from pathlib import Path

from ..errors import UserError
from ..storage.names import as_prefix, fingerprint, join
from ..storage.s3 import Storage
from ..video.config import VideoConfig
from .config import ModelConfig
from .folder import WEIGHTS_THAT_RUN_CODE, Lineage, ModelCard, check_folder, copy_safe, save_model
from .tiny import build_tiny


def ensure_base_model(storage: Storage, config: ModelConfig, video: VideoConfig, wait_s: float | None = None) -> str:
    """Bring the base model into the store, once, and return its prefix ``s3://…/models/<fingerprint>/``.

    The prefix is named by the contents of the configuration, so every stage that asks gets the same bytes.

    Args:
        video: how its videos become frames.
        wait_s: somebody else brings it; wait so long for that. Two that bring it at once would each find the other's
            half.

    Raises:
        UserError: unsupported, unsafe or unreachable model, or nobody brought it in time."""
    tiny = config.tiny.model_dump() | {"seed": config.seed} if config.name == "tiny" else None
    key = fingerprint("base-model", config.name, config.revision, config.prompt, tiny, video.model_dump(mode="json"))
    prefix = join(storage.config.root_uri, "models", key) + "/"
    deadline = time.monotonic() + (wait_s or 0.0)
    while not (complete := storage.is_complete(prefix)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if complete:
        return prefix
    if wait_s is not None:
        raise UserError(f"{prefix}: the first process did not bring the base model within {wait_s:g} s; see its log")
    with tempfile.TemporaryDirectory(prefix="vthink-model-") as scratch:
        folder = Path(scratch) / "model"
        lineage = Lineage(base=config.name, revision=config.revision, fingerprint=key)
        card = ModelCard(prompt=config.prompt, video=video, lineage=lineage)
        if config.name == "tiny":
            save_model(folder, *build_tiny(config.tiny, video, config.seed), card)
        else:
            copy_safe(_local_copy(storage, config, Path(scratch)), folder)
            card.write(folder)
        check_folder(folder)
        if not storage.is_complete(prefix):  # another run may have brought it meanwhile
            storage.upload_dir(folder, prefix)
    return prefix


def _local_copy(storage: Storage, config: ModelConfig, scratch: Path) -> Path:
    if config.name.startswith("s3://"):
        source, prefix = scratch / "source", as_prefix(config.name)
        names = [item.uri.removeprefix(prefix) for item in storage.list(prefix) if item.size]
        names = [name for name in names if "/" not in name]
        if not names:
            raise UserError(f"{prefix}: nothing there")
        source.mkdir()
        for name in names:
            if Path(name).suffix not in WEIGHTS_THAT_RUN_CODE:
                storage.download_file(prefix + name, source / name)
        return source
    if Path(config.name).is_dir():
        return Path(config.name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "merges.txt", "vocab.json"]
    hub = scratch / "hub"
    try:
        return Path(snapshot_download(config.name, revision=config.revision, allow_patterns=wanted, local_dir=hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        what = f"model '{config.name}' is neither a folder here nor reachable on the hub ({reason})"
        how = "give a folder, an s3://…/ prefix, or the name of a model you can reach"
        raise UserError(f"{what}; {how}") from error


def fetch_model(storage: Storage, uri: str, cache_dir: Path) -> Path:
    """A local folder with the model at ``uri`` (an ``s3://…/`` prefix or a folder), downloaded once and verified."""
    if not uri.startswith("s3://"):
        return Path(uri)
    folder = cache_dir / "models" / fingerprint(uri)
    storage.download_dir(as_prefix(uri), folder)
    return folder
