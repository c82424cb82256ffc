"""Layout of a run on disk, and the life cycle of an artefact: absent -> partial -> done.

A stage works in `<work_dir>/<stage>.partial`, which survives a kill. When it has finished, the
folder is synced to disk, renamed to `<work_dir>/<stage>`, and `meta.json` is written into it last:
a folder without `meta.json` is never taken for done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import ArtefactError, hub_remark
from hubert_pretrain.files import (
    empty_folder,
    publish,
    read_json,
    size_in_bytes,
    write_json,
)
from hubert_pretrain.pipeline import locks
from hubert_pretrain.pipeline.fingerprint import digest, hash_of_file

META = "meta.json"
PARTIAL_META = "partial.json"
FORMAT = "hubert_pretrain.stage.2"
"""Form of both files and of the fingerprints in them; version 0.1 wrote none."""


@dataclass(frozen=True)
class Artefact:
    """The finished output of a stage."""

    path: Path
    meta: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration that made it, of the fingerprints of its inputs, and of what
        came out: the stages that read it compare it with the one they were made from."""
        made = str(self.meta["fingerprint"])
        output = self.meta.get("output")
        return made if output is None else digest([made, output])

    @property
    def facts(self) -> dict[str, Any]:
        """Values that the stage measured."""
        return dict(self.meta["facts"])


class Workspace:
    """The folder of one run. The only class that knows how a run is laid out on disk."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def summary_path(self) -> Path:
        """`summary.json`, rewritten after each stage."""
        return self.root / "summary.json"

    @property
    def check_path(self) -> Path:
        """`check.json`, the last results of `stage=check`."""
        return self.root / "check.json"

    @property
    def plan_path(self) -> Path:
        """`plan.json`, the last results of `stage=plan`."""
        return self.root / "plan.json"

    @property
    def report_path(self) -> Path:
        """`report.html`, the page of `stage=report`."""
        return self.root / "report.html"

    @property
    def report_cache_path(self) -> Path:
        """The encoded audio of that page."""
        return self.root / ".cache" / "report.json"

    @property
    def recipe_path(self) -> Path:
        """`recipe.yaml`, the whole configuration of the run."""
        return self.root / "recipe.yaml"

    @property
    def redo_path(self) -> Path:
        """`redo.json`, the last `redo=` of a stage by name and how far it is."""
        return self.root / "redo.json"

    @property
    def compiled_path(self) -> Path:
        """`compiled/`: what torch.compile has made. A requeued job finds it; it may be deleted."""
        return self.root / "compiled"

    @property
    def jobs_path(self) -> Path:
        """`slurm/jobs.json`, the submitted job of each stage."""
        return self.root / "slurm" / "jobs.json"

    def jobs_folder(self, stage: str) -> Path:
        """Scripts and logs of the SLURM jobs of a stage."""
        return self.root / "slurm" / stage.replace("/", "-")

    def folder(self, stage: str) -> Path:
        """Folder of the finished output of a stage."""
        return self.root / stage

    def partial_folder(self, stage: str) -> Path:
        """Folder that a stage works in until it is done; it survives a kill, so that the stage can
        resume."""
        return self.root / f"{stage}.partial"

    def is_done(self, stage: str) -> bool:
        """True when the stage has finished."""
        return (self.folder(stage) / META).is_file()

    def artefact(self, stage: str) -> Artefact:
        """The finished output of a stage of this run.

        Raises ArtefactError when the stage has not finished, or was run by version 0.1.
        """
        if not self.is_done(stage):
            raise ArtefactError(
                f"{self.folder(stage)}: no finished output of stage {stage!r}; "
                f"run it first with stage={stage}"
            )
        return open_artefact(self.folder(stage), "" if Path(stage).is_absolute() else stage)

    def resolve(self, reference: str) -> Artefact:
        """The artefact that a recipe refers to.

        Args:
            reference: a stage of this run ("it1/pretrain"); the folder of a stage of another run;
                or files that no stage made: a checkpoint (a file, or a folder with a config.json)
                or a folder of targets or of a codebook. Their fingerprint is a hash of the files.
        """
        if self.is_done(reference):
            return self.artefact(reference)
        path = Path(reference).expanduser().absolute()
        if (path / META).is_file():
            return open_artefact(path)
        names = ("config.json", "store.json", "codebook.json")
        readable = any((path / name).is_file() for name in names) or any(path.glob("*.km*"))
        if path.is_file() or (readable and not (path / PARTIAL_META).exists()):
            return Artefact(path, {"fingerprint": external_fingerprint(path), "facts": {}})
        raise ArtefactError(
            f"{reference!r} is neither a finished stage of {self.root} nor a folder with a {META} "
            "nor targets nor a codebook nor a checkpoint of another project; name a stage such as "
            f"'it1/pretrain', the folder of a finished one, or a checkpoint{hub_remark(reference)}"
        )

    def lock(self, stage: str) -> contextlib.AbstractContextManager[None]:
        """Holds a stage for this process (see locks.py). Raises ArtefactError when another process
        holds it.
        """
        return locks.acquire(self._lock_path(stage), f"stage {stage!r}")

    def holder(self, stage: str) -> str | None:
        """The process that holds the lock of a stage, e.g. "process 123 on node7"; None when it is
        free.
        """
        return locks.holder(self._lock_path(stage))

    def lock_submission(self) -> contextlib.AbstractContextManager[None]:
        """Lock of launch=slurm: one process at a time reads the queue and submits."""
        return locks.acquire(self._lock_path("submission"), "launch=slurm")

    def _lock_path(self, name: str) -> Path:
        return self.root / ".locks" / name.replace("/", "-")

    def has_begun(self, stage: str, fingerprint: str) -> bool:
        """True when a process holds the stage and has opened its partial folder with this
        fingerprint.
        """
        left = read_json(self.partial_folder(stage) / PARTIAL_META)
        return (
            left is not None
            and left.get("fingerprint") == fingerprint
            and self.holder(stage) is not None
        )

    def begin(self, stage: str, fingerprint: str, config: dict[str, Any]) -> Path:
        """Open the partial folder of a stage: empty, or with the work that an interrupted run of
        the same configuration left.

        Raises ArtefactError for work of another configuration. (An empty folder is no work: that
        run failed at once.)
        """
        folder = self.partial_folder(stage)
        unsealed = self.folder(stage)
        if unsealed.exists() and not self.is_done(stage):
            # Killed between the rename and meta.json: the work is whole, only the seal is missing.
            if folder.exists():
                shutil.rmtree(unsealed)
            else:
                publish(unsealed, folder)
        left = read_json(folder / PARTIAL_META)
        if left is not None and left.get("fingerprint") == fingerprint:
            return folder
        begun = {"format": FORMAT, "fingerprint": fingerprint, "config": config}
        if left is not None and left.get("kept"):
            write_json(folder / PARTIAL_META, begun)
            return folder
        if left is not None and size_in_bytes(folder) > (folder / PARTIAL_META).stat().st_size:
            raise _not_the_same(folder, stage, left, config)
        folder.mkdir(parents=True, exist_ok=True)
        empty_folder(folder)
        write_json(folder / PARTIAL_META, begun)
        return folder

    def reopen(self, stage: str, fingerprint: str, config: dict[str, Any]) -> None:
        """Make of a finished stage an interrupted one, which goes on with another configuration.
        Its `partial.json` remembers what it was.
        """
        final = self.folder(stage)
        made = self.artefact(stage).meta
        was = {name: made[name] for name in ("fingerprint", "config", "finished", "seconds")}
        # In this order: a kill between two of them leaves a finished stage, or an interrupted one.
        write_json(
            final / PARTIAL_META,
            {
                "format": FORMAT,
                "fingerprint": fingerprint,
                "config": config,
                "continued": [*made.get("continued", []), was],
            },
        )
        (final / META).unlink()
        shutil.rmtree(self.partial_folder(stage), ignore_errors=True)
        publish(final, self.partial_folder(stage))

    def prolong(self, stage: str, fingerprint: str, config: dict[str, Any]) -> None:
        """Let interrupted work go on with another configuration, and remember its own."""
        left = self.interrupted(stage)
        was = {name: left[name] for name in ("fingerprint", "config")}
        write_json(
            self.partial_folder(stage) / PARTIAL_META,
            {
                "format": FORMAT,
                "fingerprint": fingerprint,
                "config": config,
                "continued": [*left.get("continued", []), was],
            },
        )

    def interrupted(self, stage: str) -> dict[str, Any]:
        """The `partial.json` of interrupted work; {} when there is none."""
        return dict(read_json(self.partial_folder(stage) / PARTIAL_META) or {})

    def discard(self, stage: str, keep: Sequence[str] = ()) -> None:
        """Removes the output of a stage, finished or not. `keep`: patterns of files and folders of
        a finished one that its next run uses again.
        """
        final = self.folder(stage)
        partial = self.partial_folder(stage)
        (final / META).unlink(missing_ok=True)
        if final.exists() and keep:
            shutil.rmtree(partial, ignore_errors=True)
            publish(final, partial)
            empty_folder(partial, keep)
            write_json(partial / PARTIAL_META, {"format": FORMAT, "kept": True})
            return
        for folder in (final, partial):
            if folder.exists():
                shutil.rmtree(folder)

    def finish(self, stage: str, meta: dict[str, Any]) -> Artefact:
        """Publishes the partial folder of a stage: sync, rename, and `meta.json` last."""
        partial = self.partial_folder(stage)
        final = self.folder(stage)
        publish(partial, final)
        write_json(final / META, {"format": FORMAT, **meta})
        (final / PARTIAL_META).unlink(missing_ok=True)
        return open_artefact(final)


def open_artefact(path: Path, stage: str = "") -> Artefact:
    """Read the `meta.json` of a finished folder. `stage`: its name, where it is of this run.

    Raises ArtefactError when it was never finished, or was made by version 0.1.
    """
    fix = f"redo={stage} makes it again" if stage else "make it again in its run, with redo="
    meta = read_json(path / META)
    if meta is None:
        raise ArtefactError(f"{path}: has no readable {META}, so it was never finished; {fix}")
    if meta.get("format") != FORMAT:
        raise ArtefactError(
            f"{path}: made by version {_version_of(meta)} of hubert_pretrain, which this version "
            f"cannot use; {fix}, or choose another work_dir"
        )
    return Artefact(path=path, meta=meta)


def _version_of(meta: dict[str, Any]) -> str:
    return str(meta.get("versions", {}).get("hubert-pretrain", "0.1"))


def _not_the_same(
    folder: Path, stage: str, left: dict[str, Any], config: dict[str, Any]
) -> ArtefactError:
    """The error for interrupted work that another configuration or version left."""
    fix = f"redo={stage} starts it again, another work_dir leaves it as it is"
    if left.get("format") != FORMAT:
        return ArtefactError(
            f"{folder}: an interrupted {stage!r} was started by version 0.1 of hubert_pretrain, "
            f"which this version cannot resume; {fix}"
        )
    found = ", ".join(differing_fields(left.get("config", {}), config)) or "its inputs"
    return ArtefactError(
        f"{folder}: an interrupted {stage!r} was started with another configuration ({found}). "
        f"Restore those values to resume it; {fix}"
    )


def external_fingerprint(path: Path) -> str:
    """SHA-256, shortened, of a file, or of the files that lie directly in a folder with their
    names. A file of weights beside a config.json is read with the JSON files there.
    """
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    if path.is_file() and path.with_name("config.json").is_file():
        files += sorted(path.parent.glob("*.json"))
    hashes = [(each.name if path.is_dir() else "", hash_of_file(each)) for each in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


def differing_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`["clustering.n_clusters: 100 -> 50", ...]` for every leaf that differs."""
    flat_old = flatten(old)
    flat_new = flatten(new)
    keys = [key for key in {**flat_old, **flat_new} if flat_old.get(key) != flat_new.get(key)]
    return [f"{key}: {flat_old.get(key)} -> {flat_new.get(key)}" for key in keys]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
