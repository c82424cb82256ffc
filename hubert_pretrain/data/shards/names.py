"""Names of shards and of what lies in them."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Sequence

from hubert_pretrain.data.storage import is_url
from hubert_pretrain.errors import DataError

_LONGEST_KEY = 80
"""Together with any extension short enough for the name field of a plain tar header."""


def key_of(id: str) -> str:
    """A name for an utterance's members that is safe everywhere: letters, digits, `_` and `-` (a dot would begin the extension).

    An id that is no such name gets its unsafe characters replaced and a hash appended, so that different ids keep different keys.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", id)[:_LONGEST_KEY]
    return safe if safe == id else f"{safe[: _LONGEST_KEY - 17]}-{hashlib.blake2b(id.encode(), digest_size=8).hexdigest()}"


def shard_name(split: str, number: int) -> str:
    """`train-000012.tar`."""
    return f"{key_of(split)}-{number:06d}.tar"


def expand(patterns: Sequence[str], root: str = "") -> list[str]:
    """Shards that patterns name, each pattern's in order: `train-{000000..000012}.tar` (any URL) or `train-*.tar` (a folder, s3, gs).

    Args:
        patterns: paths or URLs.
        root: the folder or URL that paths are relative to.

    Raises:
        DataError: a pattern matches nothing, a shard is named twice, or a name is a command.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise DataError(f"{pattern}: is a command, which is not run; fetch the shards first, or name them by a URL such as s3://")
        absolute = pattern if not root or is_url(pattern) or pattern.startswith("/") else f"{root.rstrip('/')}/{pattern}"
        for name in braceexpand(absolute):
            matches = _matches(name) if any(sign in name for sign in "*?[") else [name]
            if not matches:
                raise DataError(f"{name}: no shards of such a name; set data.root to their folder, or mend the pattern")
            found += matches
    for name in found:
        if found.count(name) > 1:
            raise DataError(f"{name}: is named twice by {', '.join(patterns)}; name every shard once")
    return found


def _matches(pattern: str) -> list[str]:
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    from fsspec.core import url_to_fs

    system, path = url_to_fs(pattern)
    scheme = pattern.partition("://")[0]
    return sorted(found if is_url(found) else f"{scheme}://{found.lstrip('/')}" for found in system.glob(path))
