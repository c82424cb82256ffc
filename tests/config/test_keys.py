"""A key that does not exist is refused, however it is given, with the nearest name and the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(name: str, text: str) -> Path:
    path = Path("recipes", name, "recipe.yaml").absolute()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("finetune.asr.learnign_rate=5", "finetune.asr.learning_rate"),
        ("+finetune.asr.learnign_rate=5", "finetune.asr.learning_rate"),
        ("++finetune.asr.learnign_rate=5", "finetune.asr.learning_rate"),
        ("iterations.it1.pretrain.mask.probabilty=1", "iterations.it1.pretrain.mask.probability"),
        ("model.hiden_size=128", "model.hidden_size"),
        ("trainr.devices=2", "trainer"),
        ("+trainr.devices=2", "trainer"),
        ("data.corpus.minuts=3", "minutes"),
        ("+data.corpus.minuts=3", "minutes"),
        ("iterations.it1.features.hop_second=0.02", "hop_seconds"),
        ("launch.stages.pretrain.nods=1", "launch.stages.pretrain.nodes"),
        ("finetune.asr.task.reducton=sum", "reduction"),
        ("sed=3", "seed"),
        ("+sed=3", "seed"),
    ],
)
def test_an_unknown_key_is_refused(word: str, nearest: str) -> None:
    key = word.partition("=")[0].lstrip("+")
    with pytest.raises(ConfigError) as wrong:
        compose.recipe_of(["+recipe=smoke", word])
    message = str(wrong.value)
    assert key.rpartition(".")[2] in message or key.split(".")[0] in message
    assert f"did you mean '{nearest}'" in message
    assert "\n" not in message


def test_all_unknown_keys_at_once() -> None:
    with pytest.raises(ConfigError, match="3 faults") as wrong:
        compose.recipe_of(["+recipe=smoke", "+model.a=1", "+trainer.b=2", "+iterations.it1.c=3"])
    for key in ("model.a", "trainer.b", "iterations.it1.c"):
        assert f"  {key}: no such key" in str(wrong.value)


def test_a_typo_in_a_recipe_names_the_file() -> None:
    text = "defaults: [smoke, _self_]\nname: mine\ntrainer: {device: 3}\n"
    path = write_recipe("mine", text)
    with pytest.raises(ConfigError) as wrong:
        compose.recipe_of(["+recipe=mine"])
    assert str(wrong.value).startswith(f"{path}: trainer.device: no such key")
    assert "did you mean 'trainer.devices'" in str(wrong.value)


def test_a_value_of_a_recipe_names_the_file() -> None:
    text = "defaults: [smoke, _self_]\nname: mine\ntrainer: {devices: many}\n"
    path = write_recipe("mine", text)
    with pytest.raises(ConfigError) as wrong:
        compose.recipe_of(["+recipe=mine"])
    assert str(wrong.value) == f"{path}: trainer.devices='many': expected a whole number"


@pytest.mark.parametrize("text", ["a: [", "- a\n", "", "\xff".encode("latin-1").decode("latin-1")])
def test_a_broken_recipe_breaks_only_commands_that_name_it(text: str) -> None:
    path = write_recipe("broken", text)
    assert compose.recipe_of(["+recipe=smoke"]).name == "smoke"
    with pytest.raises(ConfigError) as wrong:
        compose.recipe_of(["+recipe=broken"])
    if text:
        assert str(wrong.value).startswith(f"{path}: ")
    assert "\n" not in str(wrong.value)


def test_a_recipe_that_is_no_utf8() -> None:
    path = write_recipe("broken", "")
    path.write_bytes(b"name: \xff\n")
    assert compose.recipe_of(["+recipe=smoke"]).name == "smoke"
    with pytest.raises(ConfigError, match=r"no readable YAML"):
        compose.recipe_of(["+recipe=broken"])


def test_null_removes_an_inherited_part() -> None:
    text = (
        "defaults: [smoke, _self_]\nname: mine\n"
        "finetune: {asr: null}\niterations: {it2: null}\nlogger: {csv: null}\n"
        "export: {checkpoints: [it1/pretrain]}\nfinetune: {asr: null, speakers: null}\n"
    )
    write_recipe("mine", text.replace("finetune: {asr: null}\n", ""))
    recipe = compose.recipe_of(["+recipe=mine"])
    assert (list(recipe.iterations), recipe.finetune, recipe.logger) == (["it1"], {}, {})


def test_the_file_of_the_machine() -> None:
    path = Path("conf/local/machine.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(
        "launch:\n  resources: {partition: gpu, time_minutes: 720}\n"
        "  stages:\n    prepare: {cpus: 32}\n    it2/pretrain: {nodes: 1}\n"
        "trainer: {loader_workers: 5}\n"
    )
    recipe = compose.recipe_of(["+recipe=smoke", "launch=slurm"])
    assert recipe.launch.resources.partition == "gpu"
    assert recipe.launch.resources.time_minutes == 720
    assert recipe.launch.stages["prepare"].cpus == 32
    assert recipe.trainer.loader_workers == 5
    assert (
        compose.recipe_of(["+recipe=smoke", "trainer.loader_workers=1"]).trainer.loader_workers == 1
    )
    path.write_text("trainr: 3\n")
    with pytest.raises(ConfigError, match=r"conf/local/machine\.yaml: trainr: no such key"):
        compose.recipe_of(["+recipe=smoke"])


def test_a_saved_recipe_runs_again(folder: Path) -> None:
    from omegaconf import OmegaConf

    from hubert_pretrain.pipeline.workspace import Workspace
    from hubert_pretrain.run import _write_recipe

    words = ["+recipe=smoke", "data=folder", "data.root=/x", "model.layerdrop=0.1", "work_dir=ü/r"]
    first = compose.recipe_of(words)
    workspace = Workspace(first.work_dir)
    _write_recipe(workspace, first)
    assert "stage" not in OmegaConf.load(workspace.recipe_path)
    assert compose.recipe_of([f"+recipe={workspace.recipe_path}"]) == first
    assert compose.recipe_of(["+recipe=ü/r/recipe.yaml"]) == first
    other = compose.recipe_of(["+recipe=ü/r/recipe.yaml", "trainer=gpus_1", "seed=2"])
    assert (other.trainer.precision, other.seed) == ("bf16-mixed", 2)
    copied = write_recipe("mine", workspace.recipe_path.read_text())
    assert copied.is_file()
    assert compose.recipe_of(["+recipe=mine"]) == first
