"""`stage=check` as a user meets it: one table, a JSON, an exit code; and the lines that a stage
says when it starts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.preflight import check, machine, report
from hubert_pretrain.preflight.report import error, ok, skipped, warning
from hubert_pretrain.stages.runner import run_stage

CHECKS = [
    "lock",
    "work_dir",
    "packages",
    "disk",
    "device",
    "memory",
    "step",
    "batch fit",
    "time",
    "inputs",
    "normalisation",
    "noise",
    "corpus",
    "utterances",
    "sample rate",
    "alignments",
    "audio",
    "frames",
]


def composed(work_dir: Path, *overrides: str) -> Recipe:
    words = ["+recipe=smoke", f"work_dir={work_dir}", *overrides]
    return compose.recipe_of(words)


def states(workspace: Workspace) -> dict[str, str]:
    return {row["name"]: row["state"] for row in (read_json(workspace.check_path) or {})["rows"]}


@pytest.fixture
def prepared(
    tmp_path: Path, make_corpus: Callable[..., Corpus], make_targets: Callable[..., CodebookSet]
) -> Workspace:
    """`prepare`, `it1/cluster` and `it1/label` are done."""
    workspace = Workspace(tmp_path)
    make_targets(tmp_path / "it1", make_corpus())
    label = {"n_clusters": 5, "used_clusters": 5, "unigram_entropy_nats": 1.6}
    hours = {"splits": {"train": {"hours": 0.01}, "valid": {"hours": 0.002}}}
    for name, facts in (("prepare", hours), ("it1/cluster", {}), ("it1/label", label)):
        write_json(
            workspace.folder(name) / META,
            {"format": FORMAT, "fingerprint": name, "facts": facts, "config": {}, "inputs": {}},
        )
    return workspace


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hubert_pretrain.run", "+recipe=smoke", *words]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        check=False,
    )


def test_the_command_before_anything_was_prepared(tmp_path: Path) -> None:
    result = run("stage=check", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100
    for name in CHECKS:
        assert re.search(rf"│ {name} +│ (ok|warning|skipped) +│ \S", result.stdout), name
    assert re.search(r"│ utterances +│ skipped +│ after prepare", result.stdout)
    assert re.search(r"│ targets it2 +│ skipped +│ after it2/label", result.stdout)
    assert re.search(r"^0 errors, .*\d+ ok, \d+ skipped", result.stdout, re.MULTILINE)
    assert [path.name for path in (tmp_path / "runs/smoke").iterdir()] == ["check.json"]


def test_errors_are_in_the_table_and_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = composed(
        tmp_path, "data=folder", f"data.root={tmp_path}/nowhere", "trainer.accelerator=cpu"
    )
    with pytest.raises(
        HubertPretrainError,
        match=r"^the check found errors in corpus; the table says how to fix them$",
    ) as raised:
        check.run(recipe, Workspace(tmp_path))
    assert raised.value.exit_code == 1
    printed = capsys.readouterr().out
    assert re.search(r"│ corpus +│ error +│ \S+", printed)
    assert "fix: set data.root to where the corpus lies" in printed


def test_a_slip_of_the_pen(tmp_path: Path) -> None:
    result = run("stage=chek", cwd=tmp_path)
    assert result.returncode == 2
    assert "no such stage (did you mean 'check'?)" in result.stderr
    assert "the stages are all, list, check, plan, report, prepare" in result.stderr


def test_a_run_under_way(prepared: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    long = [
        f"iterations.{name}.pretrain.{key}"
        for name in ("it1", "it2")
        for key in ("micro_batch_seconds=2", "max_crop_seconds=1")
    ]
    long += [
        f"iterations.{name}.pretrain.{key}"
        for name in ("it1", "it2")
        for key in ("batch_seconds=2", "min_seconds=0.5")
    ]
    check.run(composed(prepared.root, *long, "trainer.accelerator=cpu"), prepared)
    assert {name: state for name, state in states(prepared).items() if state != "ok"} == {
        "targets it2": "skipped"
    }
    printed = capsys.readouterr().out
    assert "K 5, 5 used, entropy 1.60 of at most 1.61 nats" in printed
    assert "12 utterances, 612 frames, codebook " in printed


def test_crops_that_cannot_be_cut_are_one_error_of_each_iteration(
    prepared: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        HubertPretrainError, match=r"the check found errors in crops it1, crops it2"
    ):
        check.run(
            composed(
                prepared.root,
                *(f"iterations.{name}.pretrain.min_seconds=1.9" for name in ("it1", "it2")),
            ),
            prepared,
        )
    found = states(prepared)
    assert [found[f"{row} {name}"] for name in ("it1", "it2") for row in ("crops", "loader")] == [
        "error",
        "skipped",
    ] * 2
    assert (
        " ".join(capsys.readouterr().out.split()).count(
            "training utterances are at least 1.9 s long"
        )
        == 2
    )


def test_damage_is_listed_in_full_in_the_json(
    prepared: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 4, 7):
        (prepared.root / "audio" / f"u{number:02d}.wav").write_bytes(b"no audio")
    with pytest.raises(HubertPretrainError, match=r"the check found errors in .*audio"):
        check.run(composed(prepared.root, "check.all=true"), prepared)
    assert "3 bad, the first: " in " ".join(capsys.readouterr().out.split())
    rows = {row["name"]: row for row in json.loads(prepared.check_path.read_text())["rows"]}
    assert [detail.partition(": ")[0] for detail in rows["audio"]["details"]] == [
        str(prepared.root / "audio" / f"u{number:02d}.wav") for number in (1, 4, 7)
    ]


def test_a_table_of_every_state(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ok("one", "fine"),
        warning("two", "narrow", "make room"),
        error("three", "x" * 120, "fix it"),
        skipped("four", "prepare"),
    ]
    report.show(rows, "demo in runs/demo")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "demo in runs/demo"
    assert {len(line) for line in lines[1:-1]} == {report.WIDTH}
    assert lines[-1].strip() == "1 error, 1 warning, 1 ok, 1 skipped"
    text = "\n".join(lines)
    assert re.search(r"│ two +│ warning │ narrow +│\n│ +│ +│ fix: make room", text)
    assert report.line(rows[1]) == "check: warning: two: narrow; make room"
    assert report.as_json(rows)["states"] == {"ok": 1, "warning": 1, "error": 1, "skipped": 1}


def test_a_stage_that_starts_says_nothing_when_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = composed(tmp_path)
    workspace = Workspace(tmp_path)
    for each in plan.stages(recipe):
        check.check_machine(recipe, workspace, each)
    assert capsys.readouterr().out == ""
    assert not workspace.check_path.exists()


def test_a_stage_that_cannot_end_well_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = composed(tmp_path)
    workspace = Workspace(tmp_path)
    broken = error("disk", "about 1.0 TB to be written (it1/pretrain), 2.0 GB free", "free some")
    monkeypatch.setattr(machine, "disk", lambda *args: broken)
    with pytest.raises(
        HubertPretrainError,
        match=r"^check: error: disk: about 1\.0 TB to be written .*; free some$",
    ):
        run_stage(recipe, workspace, plan.find(recipe, "prepare"))
    assert not workspace.partial_folder("prepare").exists()


def test_what_is_tight_is_a_line_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = composed(tmp_path)
    workspace = Workspace(tmp_path)
    monkeypatch.setattr(
        machine, "disk", lambda *args: warning("disk", "needs 9 GB, 10 GB free", "free some")
    )
    check.check_machine(recipe, workspace, plan.find(recipe, "prepare"))
    assert capsys.readouterr().out == "check: warning: disk: needs 9 GB, 10 GB free; free some\n"


def test_preparing_does_not_wait_for_torch() -> None:
    heavy = ("torch", "lightning", "sklearn")
    code = (
        "import sys, hubert_pretrain.preflight.check; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
