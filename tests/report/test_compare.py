"""Runs beside each other: what differs, what may be ranked, and runs that are not whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.report import text
from hubert_pretrain.report.contents import collect
from hubert_pretrain.report.differences import difference
from hubert_pretrain.report.page import static
from hubert_pretrain.report.runs import MOST, names, open_runs
from hubert_pretrain.tools import compare

MakeRun = Callable[..., tuple[Recipe, Workspace]]


def content_of(*made: tuple[Recipe, Workspace]) -> dict[str, Any]:
    runs, unreadable = open_runs([workspace.root for _, workspace in made])
    return collect(runs, unreadable)


def say_command(workspace: Workspace, *words: str) -> None:
    """Store the command of a run in its prepare stage."""
    path = workspace.folder("prepare") / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": " ".join(words)}))


def test_only_keys_that_differ_are_shown_with_their_origin(make_run: MakeRun) -> None:
    first = make_run(name="first")
    words = ["iterations.it1.pretrain.steps=7", "seed=3"]
    second = make_run(*words, name="second")
    say_command(second[1], "hubert-pretrain", "+recipe=smoke", *words, "stage=prepare")
    found = content_of(first, second)["configuration"]
    assert found["values"] == {
        "seed": ["1", "3"],
        "iterations.it1.pretrain.steps": ["20", "7"],
    }
    assert found["origins"] == {
        "seed": ["default", "command line"],
        "iterations.it1.pretrain.steps": ["recipe", "command line"],
    }


def test_a_single_run_shows_every_key(make_run: MakeRun) -> None:
    found = content_of(make_run())["configuration"]
    assert found["values"]["iterations.it1.pretrain.steps"] == ["20"]
    assert len(found["values"]) > 100
    assert found["origins"]["trainer.keep_checkpoints"] == ["default"]


def test_units_are_ranked_at_equal_k_only(make_run: MakeRun) -> None:
    first = make_run(name="first", pnmi=0.4)
    second = make_run(name="second", pnmi=0.5)
    third = make_run(name="third", pnmi=0.9, k=500)
    _, _, rows = next(iter(text.tables(content_of(first, second, third))))
    assert [(row[0], row[4]) for row in rows if row[1] == "it1"] == [
        ("first", "3"),
        ("second", "1"),
        ("third", "1"),  # among its own iterations, which have the same K
    ]
    assert text.ranks([(0.4, 50), (0.5, 50), (0.9, 500), (None, 50)]) == [2, 1, None, None]


def test_scores_stand_beside_each_other_with_intervals(make_run: MakeRun) -> None:
    first = make_run(name="first")
    second = make_run(name="second", errors=2)
    content = content_of(first, second)
    tables = {title: rows for title, _, rows in text.tables(content)}
    intervals = tables["Scores, with their intervals"]
    assert ["asr/test", "wer", "0.250 [0.100, 0.400]", "0.250 [0.100, 0.400]"] in intervals
    paired = content["differences"]["asr/test"]
    assert paired[0] is None  # the first run
    assert paired[1]["value"] == pytest.approx(2 / 4 - 1 / 4)


def test_a_paired_interval_is_narrower_than_the_scores() -> None:
    # Utterances differ much, the runs by one error each: unpaired intervals would overlap.
    first = {f"u{number}": (float(number % 10), 10.0) for number in range(100)}
    other = {name: (errors + 1, words) for name, (errors, words) in first.items()}
    found = difference(first, other)
    assert found == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})


def test_other_utterances_have_no_difference(make_run: MakeRun) -> None:
    first = make_run(name="first")
    second = make_run(name="second")
    path = second[1].folder("evaluate/asr/test") / "utterances.jsonl"
    path.write_text(path.read_text().replace("u14", "u15"))
    assert content_of(first, second)["differences"] == {}


def test_utterances_have_the_units_of_every_run_of_their_corpus(make_run: MakeRun) -> None:
    content = content_of(make_run(name="first"), make_run(name="second", up_to="it2/label"))
    assert set(content["units"]) == {"first: it1", "first: it2", "second: it1"}
    assert set(content["clips"][0]["units"]) == set(content["units"])
    assert any(sentence.startswith("second: it2/label") for sentence in content["missing"])


def test_a_run_of_another_recipe_and_one_without_a_corpus(make_run: MakeRun) -> None:
    first = make_run(name="first")
    words = [f"{part}=null" for part in ("iterations.it2", "finetune.asr", "finetune.speakers")]
    words.append("export.checkpoints=[it1/pretrain]")
    second = make_run(*words, name="second", up_to="prepare")
    content = content_of(second, first)
    assert [list(run["iterations"]) for run in content["runs"]] == [["it1"], ["it1", "it2"]]
    assert content["clips"][0]["units"].keys() == {"first: it1", "first: it2"}
    assert content["runs"][0]["corpus"] is None


def test_the_command_writes_one_page(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [str(make_run(name=name)[1].root) for name in ("first", "second")]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "recipe.yaml").write_text("name: broken\nno_such_key: 1\n")
    page = tmp_path / "page.html"
    assert compare.main([*roots, str(broken), "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "first" in shown
    assert re.search(r"not there: broken: .*no_such_key", shown)
    assert "<script>window.evil" not in page.read_text()


@pytest.mark.parametrize(
    ("folders", "message"),
    [(["nowhere"], "no recipe.yaml"), ([str(number) for number in range(9)], "at most 8")],
)
def test_folders_that_are_no_runs(folders: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_runs(folders)


def test_names_are_as_short_as_they_can_be() -> None:
    assert names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


def test_each_run_has_a_colour_of_its_own() -> None:
    used = re.search(r"const COLOURS = \[(.*?)\]", static("page.js"))
    assert used is not None
    names_of_colours = re.findall(r'"(\w+)"', used[1])
    assert len(names_of_colours) == MOST
    light, dark = static("page.css").split("@media (prefers-color-scheme: dark)")[:2]
    for scheme in (light, dark):
        values = [re.search(rf"--{name}: (#\w+);", scheme) for name in names_of_colours]
        assert len({value[1] for value in values if value}) == MOST
