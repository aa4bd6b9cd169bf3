"""What of the object store may go: output of stages that nothing young and no registered model leads back to."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..components.common.config import STAGES
from ..components.common.storage.manifest import Manifest
from ..components.common.storage.names import MANIFEST, StorageError, as_prefix
from ..components.common.storage.s3 import ObjectInfo, Storage
from ..components.common.tracking.config import TrackingConfig

_FOLDERS = ("models", *STAGES)
"""Folders below the root with a prefix per fingerprint; ``models`` holds base models. MLflow's is MLflow's."""
_PREFIX = re.compile(rf"(?:{'|'.join(_FOLDERS)})/[0-9a-f]{{16}}/")
_MARKERS = (f"/{MANIFEST}", "/_COMPLETE.json")  # how the last object of a finished prefix is called


@dataclass
class StoredPrefix:
    """The output of one stage, or a base model."""

    uri: str
    objects: Sequence[ObjectInfo]
    kept_by: str = ""  # why it stays; empty: it may go

    def __post_init__(self) -> None:
        self.size = sum(entry.size for entry in self.objects)
        self.modified = max(entry.modified for entry in self.objects)
        self.finished = any(entry.uri.endswith(_MARKERS) for entry in self.objects)
        """Whether it has a manifest (a base model: its marker)."""

    def holds(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return any(entry.uri == self.uri + name for entry in self.objects)


def examine(storage: Storage, tracking: TrackingConfig, older_than: timedelta) -> list[StoredPrefix]:
    """Every prefix below the configured root, the oldest first, with the reason why it stays.

    What stays: what was written to since ``older_than`` ago (a training that runs writes checkpoints); every
    registered model version, served or not; and all that those were made from, back to the rows.

    Raises:
        UserError: the registry or the store cannot be read; without them nothing may be judged."""
    from ..components.deployment.registry import ModelRegistry

    since = datetime.now(UTC) - older_than
    stored = _list_prefixes(storage)
    for version in ModelRegistry(tracking).versions():
        reason = f"version {version.version}" + "".join(f" ({alias})" for alias in version.aliases)
        for uri in (version.source, *version.tags.values()):
            _keep(storage, stored, uri, reason)
    for prefix in stored:
        if prefix.modified >= since:
            _keep(storage, stored, prefix.uri, "recent")
    return sorted(stored, key=lambda prefix: prefix.modified)


def delete(storage: Storage, stored: Sequence[StoredPrefix]) -> Iterator[StoredPrefix]:
    """Delete the prefixes that may go, one after the other; yields each when it is gone.

    Raises:
        StorageError: one of them stays; nothing is deleted then."""
    for prefix in stored:
        if prefix.kept_by:
            raise StorageError(f"{prefix.uri} stays: {prefix.kept_by}")
    for prefix in stored:
        storage.delete_prefix(prefix.uri)
        yield prefix


def _list_prefixes(storage: Storage) -> list[StoredPrefix]:
    """Each prefix that has the form of one of ours; nothing else is ever touched."""
    root = storage.config.root_uri
    objects: dict[str, list[ObjectInfo]] = {}
    for folder in _FOLDERS:
        for entry in storage.list(f"{root}{folder}/"):
            if match := _PREFIX.match(entry.uri.removeprefix(root)):
                objects.setdefault(root + match[0], []).append(entry)
    return [StoredPrefix(uri, entries) for uri, entries in objects.items()]


def _keep(storage: Storage, stored: Sequence[StoredPrefix], uri: str, reason: str) -> None:
    """Mark the prefix that holds ``uri``, and those that its manifest names, and so on."""
    waiting = [uri]
    while waiting:
        within = as_prefix(waiting.pop())
        prefix = next((prefix for prefix in stored if within.startswith(prefix.uri)), None)
        if prefix is None or prefix.kept_by:
            continue
        prefix.kept_by = reason
        # A manifest that is there but cannot be read is a reason to stop: what it leads to is not known.
        if prefix.holds(MANIFEST):
            manifest = Manifest.read(storage, prefix.uri + MANIFEST)
            waiting += [*manifest.inputs.values(), *manifest.files.values()]
        if prefix.holds("job.json"):  # of a training, which may not have finished
            job = storage.read_json(f"{prefix.uri}job.json")
            waiting += [uri for name in ("data", "policy") if isinstance(uri := job.get(name), str) and uri]
