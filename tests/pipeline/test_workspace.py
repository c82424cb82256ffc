"""The life of an artefact, killed in each of its windows."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.pipeline import workspace as ws
from hubert_pretrain.pipeline.workspace import Workspace, differing_fields

CONFIG = {"clustering": {"n_clusters": 50}}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "run with spaces é")


def made(workspace: Workspace, fingerprint: str = "a", content: str = "codebook") -> None:
    folder = workspace.begin("it1/cluster", fingerprint, CONFIG)
    (folder / "codebook").write_text(content)
    workspace.finish(
        "it1/cluster",
        {
            "fingerprint": fingerprint,
            "config": CONFIG,
            "inputs": {},
            "facts": {"n": 1},
            "seconds": 1.0,
        },
    )


def test_done_only_after_meta(workspace: Workspace) -> None:
    folder = workspace.begin("it1/cluster", "a", CONFIG)
    assert folder.name == "cluster.partial"
    assert not workspace.is_done("it1/cluster")
    made(workspace)
    assert workspace.is_done("it1/cluster")
    assert not workspace.partial_folder("it1/cluster").exists()
    assert workspace.artefact("it1/cluster").facts == {"n": 1}
    assert sorted(path.name for path in workspace.folder("it1/cluster").iterdir()) == [
        "codebook",
        "meta.json",
    ]


def test_a_missing_artefact_says_how_to_make_it(workspace: Workspace) -> None:
    with pytest.raises(ArtefactError, match=r"run it first with stage=it1/label"):
        workspace.artefact("it1/label")


def test_partial_work_survives_a_kill(workspace: Workspace) -> None:
    (workspace.begin("it1/cluster", "a", CONFIG) / "half").write_text("x")
    assert (workspace.begin("it1/cluster", "a", CONFIG) / "half").read_text() == "x"


def test_partial_work_of_another_configuration_is_refused(workspace: Workspace) -> None:
    (workspace.begin("it1/cluster", "a", CONFIG) / "frames.scratch").write_bytes(b"work")
    with pytest.raises(ArtefactError, match=r"clustering.n_clusters: 50 -> 60"):
        workspace.begin("it1/cluster", "b", {"clustering": {"n_clusters": 60}})


def test_killed_between_folder_and_its_note(workspace: Workspace) -> None:
    folder = workspace.partial_folder("it1/cluster")
    folder.mkdir(parents=True)
    (folder / "of unknown origin").write_text("x")
    assert [path.name for path in workspace.begin("it1/cluster", "a", CONFIG).iterdir()] == [
        ws.PARTIAL_META
    ]


def test_killed_between_rename_and_meta(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder = workspace.begin("it1/cluster", "a", CONFIG)
    (folder / "codebook").write_text("whole")
    monkeypatch.setattr(ws, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        workspace.finish("it1/cluster", {})
    monkeypatch.undo()
    assert not workspace.is_done("it1/cluster")
    assert (workspace.begin("it1/cluster", "a", CONFIG) / "codebook").read_text() == "whole"


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_damaged_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"half": ')
    assert read_json(tmp_path / "meta.json") is None


def test_resolve_takes_stages_and_folders(workspace: Workspace, tmp_path: Path) -> None:
    made(workspace)
    assert workspace.resolve("it1/cluster").path == workspace.folder("it1/cluster")
    other = Workspace(tmp_path / "other")
    assert other.resolve(str(workspace.folder("it1/cluster"))).fingerprint == "a"
    with pytest.raises(ArtefactError, match="neither a finished stage"):
        other.resolve("it9/pretrain")


def test_resolve_takes_checkpoints_that_no_stage_made(workspace: Workspace, tmp_path: Path) -> None:
    """A file, or a folder with a config.json: the fingerprint follows what is in them, not where
    they lie.
    """
    folder = tmp_path / "hubert"
    again = tmp_path / "copy"
    for place in (folder, again):
        place.mkdir()
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").write_bytes(b"weights")
    found = workspace.resolve(str(folder))
    assert (found.path, found.facts) == (folder, {})
    assert found.fingerprint == workspace.resolve(str(again)).fingerprint
    (again / "model.safetensors").write_bytes(b"others!")
    assert found.fingerprint != workspace.resolve(str(again)).fingerprint
    (again / "model.safetensors").rename(again / "model.bin")
    file = folder / "model.safetensors"
    before = workspace.resolve(str(file)).fingerprint
    file.write_bytes(b"other weights")
    assert before != workspace.resolve(str(file)).fingerprint
    weights = again / "epoch10.pt"  # read with the config.json beside it
    weights.write_bytes(b"weights")
    before = workspace.resolve(str(weights)).fingerprint
    (again / "config.json").write_text("[]")
    assert before != workspace.resolve(str(weights)).fingerprint
    with pytest.raises(ArtefactError, match="nothing is downloaded"):
        workspace.resolve("facebook/hubert-base-ls960")


def test_a_run_that_failed_at_once_stands_in_nobodys_way(workspace: Workspace) -> None:
    """A wrong path was corrected: what was begun with the wrong one holds nothing that could be
    lost.
    """
    folder = workspace.begin("prepare", "a", CONFIG)
    (folder / "read.journal").touch()
    (folder / "empty").mkdir()
    assert list(workspace.begin("prepare", "b", CONFIG).iterdir()) == [folder / ws.PARTIAL_META]
    (folder / "read.journal").write_bytes(b"facts")
    with pytest.raises(ArtefactError, match="was started with another configuration"):
        workspace.begin("prepare", "c", CONFIG)


def test_resolve_refuses_what_is_no_checkpoint_or_not_finished(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "music").mkdir()
    with pytest.raises(ArtefactError, match="nor a checkpoint of another project"):
        workspace.resolve(str(tmp_path / "music"))
    folder = workspace.begin("it1/pretrain", "a", CONFIG)
    (folder / "config.json").write_text("{}")
    for place in (
        folder,
        folder.rename(workspace.folder("it1/pretrain")),
    ):  # interrupted; killed before meta.json
        with pytest.raises(ArtefactError, match="neither a finished stage"):
            workspace.resolve(str(place))


def _hold(root: Path, ready: Event, release: Event) -> None:
    with Workspace(root).lock("prepare"):
        ready.set()
        release.wait(600)


def test_two_processes_cannot_run_one_stage(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws.locks, "PATIENCE_SECONDS", 0.2)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    release = context.Event()
    holder = context.Process(target=_hold, args=(workspace.root, ready, release), daemon=True)
    holder.start()
    assert ready.wait(300)
    with (
        pytest.raises(ArtefactError, match=rf"run by another process \(process {holder.pid} on"),
        workspace.lock("prepare"),
    ):
        pass
    holder.kill()
    holder.join()
    with workspace.lock("prepare"):
        pass


def test_differing_fields() -> None:
    assert differing_fields({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 -> 3",
        "d: None -> 4",
    ]
