"""Examples, name tables and messages of the pages that guide: each is what the code has today."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hubert_pretrain import load_checkpoint
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.training import progress

DOCS = Path(__file__).resolve().parent.parent / "docs"
PACKAGE = DOCS.parent / "hubert_pretrain"
BLOCK = re.compile(r"```(python|yaml|bash)\n(.*?)```", re.DOTALL)
ELLIPSIS = "…"


def blocks(page: str, kind: str) -> list[str]:
    return [code for found, code in BLOCK.findall((DOCS / page).read_text()) if found == kind]


def rows(page: str) -> Iterator[tuple[str, list[str]]]:
    """(heading of the first column, cells) of each row of the tables of a page."""
    heading = ""
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("| "))]
        if not line.startswith("|"):
            heading = ""
        elif not heading:
            heading = cells[0]
        elif set(line) - set("|- "):
            yield heading, cells


def recipe(text: str, folder: Path, *words: str) -> Any:
    """A recipe of a page, composed as if its reader had written it."""
    name = OmegaConf.create(text).name
    (folder / "recipes" / name).mkdir(parents=True)
    (folder / "recipes" / name / "recipe.yaml").write_text(text)
    return compose.recipe_of([f"+recipe={name}", *words])


# -- docs/your-own.md


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the reader works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_feature_of_the_page(place: Path) -> None:
    (module,) = blocks("your-own.md", "python")
    (place / "centred.py").write_text(module)
    fragment, *_ = blocks("your-own.md", "yaml")
    text = "defaults: [smoke, _self_]\nname: centred\n" + fragment
    made = recipe(text, place, "iterations.it1.clustering.n_clusters=5").iterations["it1"]
    extractor = instantiate(made.features)
    assert sys.modules["centred"].__file__ == str(place / "centred.py")
    assert isinstance(extractor, FeatureExtractor)
    frames = extractor(torch.randn(2, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)))
    assert frames.shape == (2, MODEL_GRID.num_frames(SAMPLE_RATE), 40)
    assert frames.shape[2] == extractor.dim
    assert frames.mean(1).abs().max() < 1e-4
    assert frames.std() > 0.1
    assert extractor.fingerprint()["kind"] == "centred_log_mel"
    del sys.modules["centred"]


def test_the_size_of_the_page(place: Path) -> None:
    _, size, _ = blocks("your-own.md", "yaml")
    narrow = recipe(size, place, f"data.root={place}").model
    with torch.device("meta"):
        model = Hubert(narrow)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    (stated,) = re.findall(r"# (\d+) million parameters", size)
    assert millions == pytest.approx(int(stated), abs=1)


def test_the_recipe_of_the_page(place: Path) -> None:
    *_, third = blocks("your-own.md", "yaml")
    made = recipe(third, place)
    stages = [stage.name for stage in plan.stages(made)]
    assert stages.index("it2/pretrain") < stages.index("it3/cluster")
    assert made.finetune["asr"].checkpoint == "it3/pretrain"
    assert made.iterations["it3"].clustering.n_clusters == 50


# -- docs/your-language.md


def test_continued_pretraining_of_the_page(place: Path) -> None:
    text, comparison = blocks("your-language.md", "yaml")
    (place / "hubert-base").mkdir()
    made = recipe(text, place, f"data.root={place}")
    first = made.iterations["it1"]
    assert [stage.name for stage in plan.stages(made)] == [
        "prepare",
        "it1/cluster",
        "it1/label",
        "it1/pretrain",
        "export",
    ]
    assert first.features["checkpoint"] == first.pretrain.start_from == "hubert-base"
    assert first.clustering.n_clusters == 256
    assert made.model == base().model
    (place / first.pretrain.start_from).mkdir(exist_ok=True)
    (place / "runs" / "welsh" / "it1" / "pretrain").mkdir(parents=True)
    tasks = recipe(comparison, place, f"data.root={place}")
    stages = [stage.name for stage in plan.stages(tasks)]
    assert {"finetune/before", "finetune/after", "evaluate/before/test"} <= set(stages)
    before = tasks.finetune["before"]
    after = tasks.finetune["after"]
    assert after.checkpoint != before.checkpoint
    assert dataclasses.replace(after, checkpoint=before.checkpoint) == before


# -- docs/coming-from.md


@functools.cache
def base() -> Recipe:
    return compose.recipe_of(["+recipe=base_ls960", "data.root=."])


def keys_of_the_tables() -> list[tuple[str, str]]:
    """(key here, its value or "") in the second column of the tables."""
    found = []
    for _, cells in rows("coming-from.md"):
        for code in re.findall(r"`([^`]+)`", cells[1]):
            for word in code.split():
                key, _, value = word.partition("=")
                if re.fullmatch(r"(P|F|data|model|trainer|iterations)(\.\w+)+:?", key):
                    found.append((key.rstrip(":"), value))
    return found


def test_keys_of_the_name_table_exist() -> None:
    keys = keys_of_the_tables()
    assert len(keys) > 30
    for key, _ in keys:
        full = re.sub("^P", "iterations.it1.pretrain", re.sub("^F", "finetune.asr", key))
        value: Any = base()
        section, _, argument = full.partition(".task.")
        for part in section.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if argument:
            assert argument in inspect.signature(CtcTask).parameters, key


def test_values_of_the_name_table_are_those_of_base() -> None:
    first = base().iterations["it1"].pretrain
    text = (DOCS / "coming-from.md").read_text()
    values = dict(re.findall(r"`P\.([\w.]+): ([\d.]+)`", text))
    assert set(values) >= {"max_crop_seconds", "micro_batch_seconds", "batch_seconds"}
    for key, value in values.items():
        found: Any = first
        for part in key.split("."):
            found = getattr(found, part)
        assert found == float(value), key
    theirs = dict(re.findall(r"`[\w.]*(max_sample_size|min_sample_size|max_tokens): (\d+)`", text))
    assert float(theirs["max_sample_size"]) / SAMPLE_RATE == first.max_crop_seconds
    assert float(theirs["min_sample_size"]) / SAMPLE_RATE == first.min_seconds
    assert float(theirs["max_tokens"]) / SAMPLE_RATE == first.micro_batch_seconds


def test_features_for_voice_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet, with the tiny file of fairseq in place of ContentVec."""
    given = DOCS.parent / "tests" / "parity" / "reference" / "base_checkpoint.pt"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hubert_base.pt").symlink_to(given)
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE)
    soundfile.write(tmp_path / "speech.wav", noise, SAMPLE_RATE)
    (code,) = blocks("coming-from.md", "python")
    variables: dict[str, Any] = {}
    config = load_checkpoint(given).model.config
    exec(code.replace("layer=12", f"layer={config.num_hidden_layers}"), variables)
    features = variables["features"]
    assert features.shape == (1, MODEL_GRID.num_frames(SAMPLE_RATE), config.hidden_size)
    (code,) = re.findall(r"`(encoder\.build_head\(\).*?)`", (DOCS / "coming-from.md").read_text())
    projected = eval(code, variables)
    assert projected.shape[-1] == config.projection_size


# -- docs/troubleshooting.md


@functools.cache
def templates() -> list[str]:
    """Texts of the code, each with … for what is put in at run time."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    str(each.value) if isinstance(each, ast.Constant) else ELLIPSIS
                    for each in node.values
                )
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(?:d|s|g|\.\d+f)", ELLIPSIS, node.value))
    return [" ".join(text.split()) for text in found]


def is_in(message: str, texts: list[str]) -> bool:
    parts = [re.escape(part) for part in message.split(ELLIPSIS)]
    # The message may leave out the beginning and the end, and nothing else.
    pattern = re.compile(ELLIPSIS.join(parts).strip(ELLIPSIS))
    return any(pattern.search(text) for text in texts)


def test_messages_of_the_page_are_those_of_the_code() -> None:
    texts = templates()
    messages = [
        cells[0].strip("`")
        for heading, cells in rows("troubleshooting.md")
        if heading.startswith("message") and cells[0].startswith("`")
    ]
    assert len(messages) > 30
    assert [message for message in messages if not is_in(message, texts)] == []


def test_rows_of_the_check_are_those_of_the_code() -> None:
    source = "".join(path.read_text() for path in (PACKAGE / "preflight").glob("*.py"))
    named = [
        name
        for heading, cells in rows("troubleshooting.md")
        if heading == "rows"
        for name in re.findall(r"`([^`]+)`", cells[0])
    ]
    assert len(named) > 20
    for name in named:
        start = re.escape(name.removesuffix("NAME"))
        assert re.search(rf"[\"'({{]{start}[\"' {{]", source), name
    found = set(
        re.findall(r"\b(?:ok|error|warning|skipped)\(\s*f?\"([a-z_ ]+?)[\"{ ]*[\"{]", source)
    )
    assert found <= set(named), "rows that the page does not explain"


def test_an_invented_message_is_found() -> None:
    texts = templates()
    assert is_in("…: no such key…; --cfg job shows all keys", texts)
    assert not is_in("…: no such key…; --cfg job lists all keys", texts)
    assert not is_in("…: no such … key; --cfg job shows all keys", texts)


def test_every_row_has_a_cause_or_a_symptom_and_a_fix() -> None:
    for heading, cells in rows("troubleshooting.md"):
        assert len(cells) == (2 if heading == "rows" else 3)
        assert all(cells), cells


def test_lines_of_a_training_have_the_form_that_it_prints() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(train|valid) step (\d+)/(\d+)  (.*)$", text, re.MULTILINE)
    assert {kind for kind, *_ in lines} == {"train", "valid"}
    for kind, step, steps, shown in lines:
        names, left, _ = re.split(r"(  \d+:\d\d:\d\d left)$|$", shown, maxsplit=1)
        values = {
            name: float(value) for name, value in (each.split() for each in names.split("  "))
        }
        assert names == progress.describe(values)
        assert bool(left) == (kind == "train"), f"{kind} step {step}/{steps}"
