"""Arrow schemas of a prepared set's Parquet files, and rows as their records."""

from __future__ import annotations

import json
from typing import Any

from .sample import Sample


def rows_schema() -> Any:
    """Arrow schema of rows. The columns are fixed, so that no row gains keys that only others have."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    media = pa.struct([("kind", text), ("uri", text), ("sha256", text), ("start_s", number), ("end_s", number)])
    evidence = pa.struct([("start_s", number), ("end_s", number), ("caption", text)])
    return pa.schema(
        [
            ("id", text),
            ("media_id", text),
            ("media", media),
            ("question", text),
            ("options", pa.list_(text)),
            ("problem_type", text),
            ("answer", text),
            ("reasoning", text),
            ("evidence", pa.list_(evidence)),
            ("source", text),
            ("split", text),
            ("metadata", text),
        ]
    )


def media_schema() -> Any:
    """Arrow schema of prepared media: frames once per video or image, whatever the number of its
    questions.

    Where the frames would be larger than the file that they are from, ``frames`` is empty and the file itself is kept:
    in ``original``, or, for a further part of the same video, in ``original`` of the entry ``original_id``.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("media_id", pa.string()),
            ("kind", pa.string()),
            ("uri", pa.string()),
            ("sha256", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("frames", pa.list_(pa.binary())),
            ("original", pa.binary()),
            ("original_id", pa.string()),
            ("times_s", pa.list_(pa.float64())),
            ("duration_s", pa.float64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ]
    )


def index_schema() -> Any:
    """Arrow schema of the index of a prepared set: in which file and row group, at which place, a medium stands."""
    import pyarrow as pa

    place = [("file", pa.string()), ("group", pa.int32()), ("row", pa.int32())]
    return pa.schema([("media_id", pa.string()), *place])


def to_record(sample: Sample, media_id: str | None) -> dict[str, Any]:
    """A row of `rows_schema`."""
    metadata = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
    return {**sample.model_dump(mode="json"), "media_id": media_id, "metadata": metadata}


def write_records(writer: Any, records: list[dict[str, Any]]) -> None:
    """Write records of the writer's schema as one row group."""
    import pyarrow as pa

    writer.write_table(pa.Table.from_pylist(records, schema=writer.schema))
