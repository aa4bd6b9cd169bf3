"""What of the object store may go: output of stages that nothing young and no registered model leads back to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..components.common.config import STAGES
from ..components.common.storage.manifest import Manifest
from ..components.common.storage.names import StorageError, as_prefix
from ..components.common.storage.objects import ObjectInfo
from ..components.common.storage.s3 import Storage
from ..components.common.tracking.config import TrackingConfig

_FOLDERS = ("models", *STAGES)
"""Folders below the root with a prefix per fingerprint; ``models`` holds base models. MLflow's is MLflow's."""
_PREFIX = re.compile(rf"(?:{'|'.join(_FOLDERS)})/[0-9a-f]{{16}}/")


@dataclass(frozen=True)
class StoredPrefix:
    """The output of one stage, or a base model."""

    uri: str
    size: int
    """Bytes of all objects."""
    modified: datetime
    """When its newest object was written."""
    finished: bool
    """Whether it has a manifest (a base model: its marker)."""
    kept_by: str
    """Why it stays; empty: it may go."""


def examine(storage: Storage, tracking: TrackingConfig, older_than: timedelta) -> list[StoredPrefix]:
    """Every prefix below the configured root, the oldest first, with the reason why it stays.

    What stays: what was written to since ``older_than`` ago (a training that runs writes checkpoints); every
    registered model version, served or not; and all that those were made from, back to the rows.

    Raises:
        UserError: the registry cannot be asked; without it nothing may be judged.
        StorageError: the store cannot be read.
    """
    from ..components.deployment.registry import ModelRegistry

    since = datetime.now(UTC) - older_than
    found = _prefixes(storage)
    kept: dict[str, str] = {}
    for version in ModelRegistry(tracking).versions():
        reason = f"version {version.version}" + "".join(f" ({alias})" for alias in version.aliases)
        for uri in (version.source, *version.tags.values()):
            _keep(storage, found, kept, uri, reason)
    for prefix, objects in found.items():
        if _newest(objects) >= since:
            _keep(storage, found, kept, prefix, "recent")
    stored = [
        StoredPrefix(
            prefix, sum(entry.size for entry in objects), _newest(objects),
            any(entry.uri.endswith(("/manifest.json", "/_COMPLETE.json")) for entry in objects), kept.get(prefix, ""),
        )
        for prefix, objects in found.items()
    ]  # fmt: skip
    return sorted(stored, key=lambda entry: entry.modified)


def _prefixes(storage: Storage) -> dict[str, list[ObjectInfo]]:
    """The objects of each prefix that has the form of one of ours; nothing else is ever touched."""
    root = storage.config.root_uri
    found: dict[str, list[ObjectInfo]] = {}
    for folder in _FOLDERS:
        for entry in storage.list(f"{root}{folder}/"):
            if match := _PREFIX.match(entry.uri.removeprefix(root)):
                found.setdefault(root + match[0], []).append(entry)
    return found


def _newest(objects: list[ObjectInfo]) -> datetime:
    return max(entry.modified for entry in objects)


def _keep(storage: Storage, found: dict[str, list[ObjectInfo]], kept: dict[str, str], uri: str, reason: str) -> None:
    """Mark the prefix that holds ``uri``, and those that its manifest names, and so on."""
    waiting = [uri]
    while waiting:
        within = as_prefix(waiting.pop())
        prefix = next((prefix for prefix in found if within.startswith(prefix)), None)
        if prefix is None or prefix in kept:
            continue
        kept[prefix] = reason
        # A manifest that is there but cannot be read is a reason to stop: what it leads to is not known.
        if any(entry.uri == f"{prefix}manifest.json" for entry in found[prefix]):
            manifest = Manifest.read(storage, f"{prefix}manifest.json")
            waiting += [*manifest.inputs.values(), *manifest.files.values()]
        waiting += _job_inputs(storage, prefix, found[prefix])


def _job_inputs(storage: Storage, prefix: str, objects: list[ObjectInfo]) -> Iterator[str]:
    """What a training that has not finished reads, as its job says."""
    if not any(entry.uri == f"{prefix}job.json" for entry in objects):
        return
    job = storage.read_json(f"{prefix}job.json")
    yield from (value for name in ("data", "policy") if isinstance(value := job.get(name), str) and value)


def delete(storage: Storage, stored: list[StoredPrefix]) -> Iterator[StoredPrefix]:
    """Delete the prefixes that may go, one after the other; yields each when it is gone."""
    for entry in stored:
        if entry.kept_by:
            raise StorageError(f"{entry.uri} stays: {entry.kept_by}")
    for entry in stored:
        storage.delete_prefix(entry.uri)
        yield entry
