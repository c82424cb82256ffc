"""Arrow tables on disk as this project uses them: one record batch, uncompressed, memory-mapped.

One batch keeps every column contiguous, so a column of numbers is a numpy view of the file: opening costs the same for a hundred rows
and for 200 million, and all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.workspace import sync_folder


def write_table(path: Path, columns: dict[str, pa.Array], metadata: dict[str, str]) -> None:
    """Writes the columns atomically: whoever opens `path` sees the whole table or none."""
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, metadata=metadata)
    batch = pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def open_table(path: Path, made_by: str) -> tuple[pa.RecordBatch, dict[str, str]]:
    """The batch (views of the file, nothing is read yet) and the metadata of a table written by `write_table`.

    Raises ArtefactError when the file is missing or damaged; the message names the stage `made_by` that writes it.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; it is written by stage={made_by}")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)), options=pa.ipc.IpcReadOptions(use_threads=False))
        batch = reader.get_batch(0)
    except (pa.ArrowInvalid, OSError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(f"{path}: damaged ({reason}); delete its folder and run stage={made_by} again") from error
    metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
    return batch, metadata
