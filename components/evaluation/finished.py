"""A finished evaluation, read back from the store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..common.storage.manifest import Manifest
from ..common.storage.names import join
from ..common.storage.s3 import Storage
from .item import read_items
from .results import BenchmarkResult, EvaluationResult, parse_benchmark, read_evaluation

_FILES = {"result": "result.json", "items": "items.jsonl", "report": "report.html", "benchmarks": "benchmarks.html"}


@dataclass(frozen=True, slots=True)
class EvaluationManifest:
    """What the stage leaves: ``result``, ``items`` and ``report``; with benchmarks a page, and a folder for each."""

    manifest: Manifest

    @classmethod
    def read(cls, storage: Storage, uri: str) -> EvaluationManifest:
        """Of the manifest at ``uri``.

        Raises:
            StorageError: missing or damaged.
        """
        return cls(Manifest.read(storage, uri))

    @staticmethod
    def files_at(prefix: str, benchmarks: Iterable[BenchmarkResult]) -> dict[str, str]:
        """Where the files of an evaluation are."""
        folders = {f"benchmarks/{one.model}/{one.key}": one.where for one in benchmarks}
        return {name: join(prefix, file) for name, file in _FILES.items() if folders or name != "benchmarks"} | folders

    def result(self, storage: Storage) -> EvaluationResult:
        """Its numbers."""
        uri = self.manifest.files["result"]
        return read_evaluation(storage.read_bytes(uri), uri)

    def results(self, storage: Storage) -> tuple[dict[str, list[BenchmarkResult]], str]:
        """By model its results with their items, the held-out split first; and the name of the candidate.

        Raises:
            UserError: a file is not as the stage writes it.
        """
        result, items_uri = self.result(storage), self.manifest.files["items"]
        items = list(read_items(storage.read_bytes(items_uri), items_uri))
        results = {name: [result.on_split(name, items, self.manifest.uri)] for name in result.models}
        for file, prefix in self.manifest.files.items():
            if file.startswith("benchmarks/"):
                model = file.split("/")[1]
                contents = [storage.read_bytes(join(prefix, name)) for name in ("result.json", "items.jsonl")]
                results[model].append(parse_benchmark(contents[0], contents[1], prefix, model))
        return results, result.candidate
