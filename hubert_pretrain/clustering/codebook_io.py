"""The two files of a codebook: tensors as safetensors, everything else as JSON. Any program can
open them, and they run no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import disk_room, read_json, write_json

FORMAT = "hubert_pretrain.codebook.2"
FORMAT_0_1 = "hubert_pretrain.codebook.1"
"""Of version 0.1, which this version refuses."""
CENTROIDS = "codebook.safetensors"
DESCRIPTION = "codebook.json"
AGAIN = "make the codebook again (redo=NAME/cluster, or import-kmeans)"
"""The fix for a damaged one."""


def write_codebook(folder: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Writes the tensors, then the description, which holds their hash.

    After an interruption between the two, `read_codebook` and `check_hash` refuse the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with disk_room(folder / CENTROIDS, len(data)):
        (folder / CENTROIDS).write_bytes(data)
        write_json(folder / DESCRIPTION, {"format": FORMAT} | description)


def read_codebook(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description. Raises ArtefactError when a file is missing or damaged."""
    description = read_json(folder / DESCRIPTION)
    if isinstance(description, dict) and description.get("format") == FORMAT_0_1:
        raise ArtefactError(
            f"{folder / DESCRIPTION}: made by version 0.1 of hubert_pretrain, which this version "
            f"cannot use; {AGAIN}"
        )
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ArtefactError(
            f"{folder / DESCRIPTION}: missing, damaged or not a {FORMAT}; name the folder of a "
            "codebook, such as runs/demo/it2/cluster or that of import-kmeans"
        )
    try:
        return load_file(folder / CENTROIDS), description
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{folder / CENTROIDS}: cannot be read ({error}); {AGAIN}") from error


def check_hash(folder: Path, found: str, description: dict[str, Any]) -> None:
    """Raises ArtefactError when the description was written for other tensors."""
    if found != description.get("sha256"):
        raise ArtefactError(
            f"{folder}: {CENTROIDS} is not the one that {DESCRIPTION} describes (other SHA-256); "
            f"{AGAIN}"
        )
