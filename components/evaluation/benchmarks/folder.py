"""The files of a benchmark in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...common.errors import UserError
from ...common.rows.sample import Sample
from ...common.storage.names import sha256_file
from .benchmark import CUT_ALREADY, Benchmark, QuestionSet
from .entries import entries

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".gif")


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class DataFolder:
    """The names below a folder, and the ways in which people lay out the same videos."""

    def __init__(self, where: str, names: Iterable[str]) -> None:
        """Args: ``where``: for messages; ``names``: relative, with ``/`` between parts."""
        self.where = where
        self.names = sorted(names)
        videos = [name for name in self.names if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]
        images = [name for name in self.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        self._known = {*videos, *images}
        self._by_stem: dict[str, list[str]] = {}
        for name in videos:
            self._by_stem.setdefault(_stem(name).rpartition("/")[2], []).append(name)

    def annotations(self, alternatives: Sequence[Sequence[str]]) -> list[str]:
        """The annotation files of the first alternative that is there, wherever in the folder they lie.

        Raises:
            UserError: there is none.
        """
        for patterns in alternatives:
            found = [name for name in self.names if any(PurePosixPath(name).match(p) for p in patterns)]
            if found:
                return found
        wanted = " or ".join(dict.fromkeys(patterns[0] for patterns in alternatives))
        raise UserError(f"{self.where}: no annotation file; expected {wanted} (as published) somewhere in it")

    def video(self, candidates: Sequence[str]) -> str | None:
        """The video's (or, as it stands, an image's) name in the folder, or None.

        Tried in turn: the candidates as they stand, below other folders, with another ending. A file that only
        shares its last name with a candidate is another video, and a name that several files have is nobody's.
        """
        for candidate in candidates:
            if candidate in self._known:
                return candidate
        for candidate in candidates:
            stem = _stem(candidate)
            alike = [
                name
                for name in self._by_stem.get(stem.rpartition("/")[2], [])
                if f"/{_stem(name)}".endswith(f"/{stem}")
            ]
            same = [name for name in alike if name.endswith(candidate)]
            for found in (same, alike):
                if len(found) == 1:
                    return found[0]
        return None


def _stem(name: str) -> str:
    """A video's name without its ending; a dot that begins no ending of a video belongs to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else str(path)


def load_questions(benchmark: Benchmark, folder: DataFolder, local: Callable[[str], Path]) -> QuestionSet:
    """Read a benchmark's annotation files and find its videos.

    Args:
        benchmark: whose.
        folder: what is there.
        local: gives the path on this machine of a name in the folder.

    Raises:
        UserError: no annotation file, one that is not as published, or not one video.
    """
    samples: list[Sample] = []
    missing: dict[str, str] = {}
    files: dict[str, str] = {}
    seen: dict[str, int] = {}
    for name in folder.annotations(benchmark.files):
        path = local(name)
        files[name] = sha256_file(path)
        for entry in entries(path, name):
            for question in benchmark.read(entry):
                sample = question.sample
                seen[sample.id] = seen.get(sample.id, 0) + 1
                if seen[sample.id] > 1:  # published ids repeat
                    sample = sample.model_copy(update={"id": f"{sample.id}#{seen[sample.id]}"})
                found = folder.video(question.videos)
                if found is None:
                    missing[sample.id] = f"no video: none of {', '.join(question.videos[:3])} in {folder.where}"
                else:
                    changed: dict[str, Any] = {"uri": found}
                    if PurePosixPath(found).parent.name.endswith(CUT_ALREADY):
                        changed |= {"start_s": None, "end_s": None}
                    media = sample.media.model_copy(update=changed)
                    sample = sample.model_copy(update={"media": media})
                samples.append(sample)
    if not samples:
        raise UserError(f"{folder.where}: no question in {', '.join(files)}")
    if len(missing) == len(samples):
        first = next(iter(missing.values()))
        raise UserError(
            f"{folder.where}: none of the videos of {benchmark.title} is there ({first}); unpack the archives"
        )
    return QuestionSet(benchmark, samples, missing, files)
