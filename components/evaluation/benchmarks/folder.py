"""Where a benchmark's files are, a folder or a prefix in the store, and the questions in them."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...common.errors import UserError
from ...common.rows.sample import Sample
from ...common.storage.names import as_prefix, join, sha256_file
from ...common.storage.s3 import Storage
from .benchmark import Benchmark, QuestionSet, entries

CUT_ALREADY = "_segment"
"""Ending of folders (of lmms-eval's copy of MVBench) whose videos are the parts that are asked about."""
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class DataFolder:
    """The names below a folder, and the ways in which people lay out the same videos."""

    def __init__(self, where: str, names: Iterable[str]) -> None:
        """Args: ``where``: for messages; ``names``: relative, with ``/`` between parts."""
        self.where = where
        self.names = sorted(names)
        self._known: set[str] = set()
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
                self._known.add(name)
            if suffix in VIDEO_SUFFIXES:
                self._by_stem.setdefault(_stem(name).rpartition("/")[2], []).append(name)

    def annotations(self, alternatives: Sequence[Sequence[str]]) -> list[str]:
        """The annotation files of the first alternative that is there, wherever in the folder they lie.

        Raises `UserError`: there is none."""
        for patterns in alternatives:
            matching = [name for name in self.names if any(PurePosixPath(name).match(p) for p in patterns)]
            if matching:
                return matching
        wanted = " or ".join(dict.fromkeys(patterns[0] for patterns in alternatives))
        raise UserError(f"{self.where}: no annotation file; expected {wanted} (as published) somewhere in it")

    def video(self, candidates: Sequence[str]) -> str | None:
        """The video's (or, as it stands, an image's) name in the folder, or None. Tried in turn: the candidates as they
        stand, below other folders, with another ending. A file that only shares its last name with a candidate is
        another video, and a name that several files have is nobody's."""
        for candidate in candidates:
            if candidate in self._known:
                return candidate
        for candidate in candidates:
            stem = _stem(candidate)
            same_name = self._by_stem.get(stem.rpartition("/")[2], [])
            alike = [name for name in same_name if f"/{_stem(name)}".endswith(f"/{stem}")]
            for matching in ([name for name in alike if name.endswith(candidate)], alike):
                if len(matching) == 1:
                    return matching[0]
        return None


def _stem(name: str) -> str:
    """A video's name without its ending; a dot that begins no ending of a video belongs to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else str(path)


def load_questions(benchmark: Benchmark, folder: DataFolder, local: Callable[[str], Path]) -> QuestionSet:
    """Read a benchmark's annotation files (``local`` gives their paths on this machine) and find its videos.

    Raises `UserError`: no annotation file, one that is not as published, or not one video."""
    samples: list[Sample] = []
    missing: dict[str, str] = {}
    files: dict[str, str] = {}
    seen: dict[str, int] = {}
    for name in folder.annotations(benchmark.files):
        path = local(name)
        files[name] = sha256_file(path)
        for question in (question for entry in entries(path, name) for question in benchmark.read(entry)):
            sample, video = question.sample, folder.video(question.videos)
            seen[sample.id] = seen.get(sample.id, 0) + 1
            if seen[sample.id] > 1:  # published ids repeat
                sample = sample.model_copy(update={"id": f"{sample.id}#{seen[sample.id]}"})
            if video is None:
                missing[sample.id] = f"no video: none of {', '.join(question.videos[:3])} in {folder.where}"
            else:
                whole = PurePosixPath(video).parent.name.endswith(CUT_ALREADY)
                changed = {"uri": video} | ({"start_s": None, "end_s": None} if whole else {})
                sample = sample.model_copy(update={"media": sample.media.model_copy(update=changed)})
            samples.append(sample)
    if not samples:
        raise UserError(f"{folder.where}: no question in {', '.join(files)}")
    if len(missing) == len(samples):
        raise UserError(
            f"{folder.where}: none of the videos of {benchmark.title} is there ({next(iter(missing.values()))}); "
            "unpack the archives"
        )
    return QuestionSet(benchmark, samples, missing, files)


class LocalFile:
    """A file on this machine; one that was fetched is removed when nobody holds this object any more."""

    def __init__(self, path: Path, fetched: bool = False) -> None:
        self.path = path
        self._fetched = fetched

    def __del__(self) -> None:
        if self._fetched:
            with suppress(OSError):
                self.path.unlink()


@dataclass
class Source:
    """Where a benchmark's files are: a folder, or a prefix in the store."""

    folder: DataFolder
    root: Path | str
    storage: Storage | None
    work_dir: Path

    @classmethod
    def open(cls, where: str, storage: Storage | None, work_dir: Path, hub: str = "") -> Source:
        """List what is in a folder, ``s3://…/``, or ``hub``, which means the data set ``hub``.

        Raises `UserError`: nothing is there."""
        if where == "hub":
            where = str(_from_hub(hub, work_dir))
        if where.startswith("s3://"):
            if storage is None:
                raise UserError(f"{where}: no object store to look in")
            prefix = as_prefix(where)
            names = [item.uri.removeprefix(prefix) for item in storage.list(prefix)]
            names = [name for name in names if ".." not in PurePosixPath(name).parts and not name.endswith("/")]
            source = cls(DataFolder(prefix, names), prefix, storage, work_dir)
        else:
            root = Path(where)
            if not root.is_dir():
                raise UserError(f"{where}: there is no such folder")
            source = cls(DataFolder(where, _names_below(root)), root, None, work_dir)
        if not source.folder.names:
            raise UserError(f"{where}: nothing there")
        return source

    def file(self, name: str) -> LocalFile:
        """One of its files, on this machine."""
        if self.storage is None:
            return LocalFile(Path(self.root) / name)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix="fetched-", suffix=PurePosixPath(name).suffix, dir=self.work_dir)
        os.close(descriptor)
        file = LocalFile(Path(path), fetched=True)
        self.storage.download_file(join(str(self.root), name), file.path)
        return file


def _from_hub(name: str, work_dir: Path) -> Path:
    """A folder with a data set of the hub, its archives unpacked; fetched once."""
    if not name:
        raise UserError("a set of your own is not on the hub; give its folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = work_dir / "hub" / name.replace("/", "--")
    try:
        snapshot_download(name, repo_type="dataset", local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the data set {name} cannot be fetched from the hub ({reason}); give the folder it is in"
        ) from None
    for archive in sorted(folder.rglob("*.zip")):
        unpack(archive)
    return folder


def unpack(archive: Path) -> Path:
    """Unpack a zip archive into a folder of its name beside it, once; nothing is written outside of that folder.

    Raises `UserError`: it is damaged, or there is no room for it."""
    target = archive.with_suffix("")
    done = archive.with_name(f".{archive.name}.unpacked")
    if done.exists():
        return target
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted, free = sum(item.file_size for item in opened.infolist()), shutil.disk_usage(archive.parent).free
            if wanted > free:
                raise UserError(f"{archive}: needs {wanted / 2**30:.1f} GiB unpacked, {free / 2**30:.1f} are free")
            opened.extractall(target)  # leaves out leading slashes and ".."
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}); delete it and run again") from None
    done.touch()
    return target


def _names_below(root: Path) -> list[str]:
    """Files below a folder; linked folders are followed, each once."""
    names: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        names += [Path(folder, name).relative_to(root).as_posix() for name in files]
    return names
