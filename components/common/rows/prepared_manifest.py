"""What the manifest of a prepared set says: written by data preparation, read by whoever opens the set."""

from __future__ import annotations

from typing import Self

from ..config import ConfigError, Section
from ..storage.manifest import Manifest
from ..storage.names import StorageError
from ..video.config import VideoConfig


class PreparedFiles(Section):
    """URIs of what a prepared set consists of."""

    data: str
    """The set's prefix."""
    quarantine: str
    """Every row that is left out, with its reason."""
    card: str
    """What is in it, in numbers."""
    contamination: str
    """What training and evaluation share."""
    report: str
    """All of this as an HTML page."""


class PreparedDetails(Section):
    """What a reader of the set needs."""

    video: VideoConfig
    """How its frames were made."""
    codec: str
    """How its frames are compressed."""
    index: str
    """Name of the file that says where each medium stands."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of every file that belongs to the set, by name; an attempt that was cut off may have left
    others beside them."""
    source_sha256: str
    """Of the file of rows; empty for the generated world."""
    format: str
    """How its rows were written."""


class PreparedManifest(Section):
    """The typed part of a prepared set's `Manifest`."""

    fingerprint: str
    counts: dict[str, int]
    """``rows_in``, ``rows_out``, ``quarantined``, ``left_out``, ``media``, and by split, reason and setting."""
    files: PreparedFiles
    details: PreparedDetails

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Read it.

        Raises:
            StorageError: the manifest is not one of a prepared set of this version.
        """
        try:
            return cls.load(manifest.model_dump(include=set(cls.model_fields)), manifest.manifest_uri)
        except ConfigError as error:
            raise StorageError(f"{error}; prepare the data again") from error
