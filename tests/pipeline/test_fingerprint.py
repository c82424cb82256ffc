"""Fingerprints of stages: the same for the same result, another for another result."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config import nodes
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.pipeline import fingerprint, plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import FORMAT, META, PARTIAL_META, Workspace
from hubert_pretrain.targets.store import TargetStore
from tests.config.test_recipes import composed


@pytest.fixture(scope="module")
def smoke() -> Recipe:
    return composed("smoke")


def identities(recipe: Recipe) -> dict[str, str]:
    """A hash of the configuration of every stage."""
    return {stage.name: fingerprint.digest(stage.identity) for stage in plan.stages(recipe)}


def changed(before: Recipe, after: Recipe) -> set[str]:
    """The stages whose configuration has another hash."""
    old = identities(before)
    new = identities(after)
    return {name for name in old if old[name] != new.get(name)}


def test_moving_a_module_changes_nothing(smoke: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identities(smoke)
    moved = copy.deepcopy(smoke)
    at = {"Synthetic": smoke.data.corpus, "Mfcc": smoke.iterations["it1"].features}
    targets = {kind: node["_target_"] for kind, node in at.items()}
    defaults = nodes.defaults

    def defaults_there(node: dict[str, Any]) -> dict[str, Any]:
        """The modules lie elsewhere now, and nothing else is different."""
        kind = node["_target_"].rpartition(".")[2]
        return defaults(node | {"_target_": targets.get(kind, node["_target_"])})

    monkeypatch.setattr(nodes, "defaults", defaults_there)
    moved.data.corpus["_target_"] = "hubert_pretrain.corpora.elsewhere.Synthetic"
    moved.iterations["it1"].features["_target_"] = "hubert_pretrain.features.other.place.Mfcc"
    assert smoke.data.corpus["_target_"].endswith(".Synthetic")
    assert identities(moved) == before


def test_another_class_is_another_fingerprint(smoke: Recipe) -> None:
    other = copy.deepcopy(smoke)
    other.iterations["it1"].features["_target_"] = "hubert_pretrain.features.log_mel.LogMel"
    assert changed(smoke, other) == {"it1/cluster", "it1/label"}
    other.iterations["it1"].features["_target_"] = "theirs.Mfcc"
    assert changed(smoke, other) == {"it1/cluster", "it1/label"}


def test_smoothing_counts_for_the_labels_alone(smoke: Recipe) -> None:
    other = copy.deepcopy(smoke)
    other.iterations["it1"].switch_penalty = 2.5
    assert changed(smoke, other) == {"it1/label"}
    other.iterations["it1"].switch_penalty = 0.0
    (label,) = [stage for stage in plan.stages(other) if stage.name == "it1/label"]
    assert "switch_penalty" not in label.identity  # as before there was one


def test_the_seed_counts_where_it_is_used(smoke: Recipe) -> None:
    other = copy.deepcopy(smoke)
    other.seed += 1
    trainings = {"it1/pretrain", "it2/pretrain", "finetune/asr", "finetune/speakers"}
    evaluations = {"evaluate/asr/test", "evaluate/speakers/test"}
    assert changed(smoke, other) == {"it1/cluster", "it2/cluster"} | trainings | evaluations


def test_values_that_do_not_change_the_result_do_not_count(smoke: Recipe) -> None:
    other = copy.deepcopy(smoke)
    other.data.workers = 7
    other.data.corpus["workers"] = 7
    other.data.max_bad_fraction = 0.5
    other.data.cache_dir = "/cache"
    pretrain = other.iterations["it1"].pretrain
    pretrain.log_every_steps += 1
    pretrain.valid_every_steps += 1
    pretrain.checkpoint_every_steps += 1
    pretrain.probe.every_steps += 1
    other.finetune["asr"].test_split = ["test", "valid"]
    other.trainer.precision = "bf16-mixed"
    assert not changed(smoke, other)
    pretrain.learning_rate *= 2
    assert changed(smoke, other) == {"it1/pretrain"}


def test_spellings_of_a_path_are_one(
    smoke: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "teacher").mkdir()
    recipes = []
    for root in (f"{tmp_path}/corpus", "corpus", "./corpus/", "~/corpus", "teacher/../corpus"):
        recipe = copy.deepcopy(smoke)
        recipe.data.root = root
        recipe.data.corpus["root"] = root
        recipe.iterations["it2"].features["checkpoint"] = root.replace("corpus", "teacher")
        recipe.iterations["it2"].pretrain.start_from = root.replace("corpus", "teacher")
        recipes.append(recipe)
    for recipe in recipes[1:]:
        assert not changed(recipes[0], recipe)
        assert plan.find(recipes[0], "it2/pretrain").inputs == (
            "prepare",
            "it2/label",
            f"{tmp_path}/teacher",
        )
    assert changed(smoke, recipes[0]) == {"prepare", "it2/cluster", "it2/label", "it2/pretrain"}


def test_the_working_directory_does_not_count(
    smoke: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {stage.name: (stage.config, stage.identity) for stage in plan.stages(smoke)}
    monkeypatch.chdir(tmp_path)
    for stage in plan.stages(smoke):
        assert here[stage.name] == (stage.config, stage.identity), stage.name


def test_stages_of_the_run_and_urls_stay_as_they_are(smoke: Recipe) -> None:
    cluster = plan.find(smoke, "it2/cluster")
    assert cluster.inputs == ("prepare", "it1/pretrain")
    assert cluster.config["features"]["checkpoint"] == "it1/pretrain"
    assert fingerprint.absolute("s3://bucket/a/../b") == "s3://bucket/a/../b"


# -- versions


def made_by_0_1(workspace: Workspace, stage: Stage, name: str) -> Path:
    """A file of version 0.1 in the folder of a stage: what it wrote had no format."""
    finished = name == META
    folder = (workspace.folder if finished else workspace.partial_folder)(stage.name)
    meta = {"fingerprint": "0" * 16, "config": stage.config, "inputs": {}, "facts": {}}
    write_json(folder / name, meta | {"versions": {"hubert-pretrain": "0.1.0"}})
    (folder / "manifest.arrow").write_bytes(b"work")
    return folder


def test_a_finished_stage_of_version_0_1_is_refused(smoke: Recipe, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    stage = plan.find(smoke, "prepare")
    folder = made_by_0_1(workspace, stage, META)
    assert plan.state(stage, workspace) == plan.OUTDATED
    for use in (
        lambda: plan.check_unchanged(stage, workspace),
        lambda: workspace.artefact("prepare"),
        lambda: workspace.resolve("prepare"),
        lambda: Workspace(tmp_path / "other").resolve(str(folder)),
    ):
        with pytest.raises(
            ArtefactError, match=r"made by version 0\.1\.0 .*; (redo=prepare makes|make) it again"
        ) as refused:
            use()
        assert str(refused.value).startswith(f"{folder}: ")
        assert "\n" not in str(refused.value)


def test_interrupted_work_of_version_0_1_is_refused(smoke: Recipe, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    stage = plan.find(smoke, "prepare")
    folder = made_by_0_1(workspace, stage, PARTIAL_META)
    with pytest.raises(ArtefactError, match=r"was started by version 0\.1 .*; redo=prepare starts"):
        workspace.begin("prepare", "a", stage.config)
    assert (folder / "manifest.arrow").exists()


def test_codebooks_and_targets_of_version_0_1_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "codebook.json", {"format": "hubert_pretrain.codebook.1"})
    with pytest.raises(
        ArtefactError, match=r"codebook\.json: made by version 0\.1 .*redo=NAME/cluster"
    ):
        CodebookSet.load(tmp_path)
    write_json(tmp_path / "store.json", {"format": "hubert_pretrain.targets.1"})
    with pytest.raises(ArtefactError, match=r"store\.json: made by version 0\.1 .*redo=NAME/label"):
        TargetStore.open(tmp_path)


def test_a_finished_stage_states_its_format(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.begin("prepare", "a", {})
    workspace.finish("prepare", {"fingerprint": "a", "facts": {}})
    assert read_json(tmp_path / "prepare" / META)["format"] == FORMAT


# -- what does not change the result


def test_defaults_that_are_written_out_do_not_count(smoke: Recipe) -> None:
    """Of a class of ours, also where a default is an expression; another value counts."""
    written = copy.deepcopy(smoke)
    written.iterations["it1"].features |= {"hop_seconds": 0.02, "window_seconds": 0.025}
    written.data.corpus |= {"variation": 0.1, "test_fraction": 0.10}
    assert not changed(smoke, written)
    written.iterations["it1"].features["hop_seconds"] = 0.04
    assert changed(smoke, written) == {"it1/cluster", "it1/label"}
    other = copy.deepcopy(smoke)
    other.data.corpus = {"_target_": "hubert_pretrain.corpora.voxpopuli.VoxPopuli", "root": "/a"}
    years = copy.deepcopy(other)
    years.data.corpus["years"] = list(range(2009, 2021))
    assert not changed(other, years)
    years.data.corpus["years"] = [2009]
    assert changed(other, years) == {"prepare"}


def test_the_place_of_a_file_does_not_count_but_its_content_does(
    smoke: Recipe, tmp_path: Path
) -> None:
    """A corpus, a checkpoint, a folder of noise behind another mount point."""
    recipes = []
    workspace = Workspace(tmp_path / "run")
    for mount in ("one", "two"):
        folder = tmp_path / mount
        (folder / "teacher").mkdir(parents=True)
        (folder / "teacher/config.json").write_text("{}")
        (folder / "noise").mkdir()
        (folder / "noise/hum.wav").write_bytes(b"hum")
        recipe = copy.deepcopy(smoke)
        recipe.data.root = str(folder)
        recipe.data.corpus["root"] = str(folder)
        recipe.iterations["it1"].features = {
            "_target_": "hubert_pretrain.features.layer.LayerFeatures",
            "checkpoint": str(folder / "teacher"),
            "layer": 1,
        }
        recipe.iterations["it1"].pretrain.augment.noise = str(folder / "noise")
        recipes.append(recipe)
    one, two = recipes
    assert not changed(one, two)
    fingerprints = {
        plan.fingerprint_of(plan.find(recipe, "prepare"), workspace) for recipe in recipes
    }
    assert len(fingerprints) == 1
    (tmp_path / "two/noise/hum.wav").write_bytes(b"another hum")
    fingerprint._content_of_folder.cache_clear()
    assert changed(one, two) == {"it1/pretrain"}


TASKS = {
    "hubert_pretrain.finetune.ctc.CtcTask": "vocabulary",
    "hubert_pretrain.finetune.phones.PhoneTask": "lexicon",
    "hubert_pretrain.finetune.frames.FramesTask": "label_file",
    "hubert_pretrain.finetune.verify.VerifyTask": "trials",
}


@pytest.mark.parametrize("target", TASKS)
def test_the_content_of_the_files_of_a_task_counts(
    smoke: Recipe, target: str, tmp_path: Path
) -> None:
    """Not where they lie, and also where their size is the same."""
    (name,) = list(smoke.finetune)[:1]
    recipes = []
    for mount in ("one", "two"):
        (tmp_path / mount).mkdir()
        path = tmp_path / mount / "list.txt"
        path.write_text("A B\n")
        recipe = copy.deepcopy(smoke)
        value = {"test": str(path)} if TASKS[target] == "trials" else str(path)
        recipe.finetune[name].task = {"_target_": target, TASKS[target]: value}
        recipes.append(recipe)
    one, two = recipes
    assert not changed(one, two)
    path.write_text("A C\n")
    assert f"finetune/{name}" in changed(one, two)


def test_the_content_of_a_language_model_counts_where_texts_are_scored(
    smoke: Recipe, tmp_path: Path
) -> None:
    """And the word `train` names no file."""
    (name,) = list(smoke.finetune)[:1]
    file = tmp_path / "lm.arpa"
    file.write_text("one")
    recipe = copy.deepcopy(smoke)
    recipe.finetune[name].decoding = DecodingConfig(kind="beam", lm=str(file))
    before = identities(recipe)
    file.write_text("two")
    after = identities(recipe)
    stages = {stage for stage in before if before[stage] != after[stage]}
    assert stages == {stage for stage in before if stage.startswith(f"evaluate/{name}/")}
    recipe.finetune[name].decoding = DecodingConfig(kind="beam", lm="train")
    (stage,) = stages
    assert plan.find(recipe, stage).config["evaluate"]["decoding"]["lm"] == "train"


def test_a_stage_whose_file_has_another_content_says_so(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("A B\n")
    task = {"_target_": "hubert_pretrain.finetune.phones.PhoneTask", "lexicon": str(words)}
    stage = Stage("finetune/pr", "finetune", (), {"finetune": {"task": task}})
    workspace = Workspace(tmp_path / "run")
    folder = workspace.folder(stage.name)
    folder.mkdir(parents=True)
    meta = {"format": FORMAT, "fingerprint": "f", "facts": {}, "inputs": {}, "config": stage.config}
    write_json(folder / META, {**meta, "identity": fingerprint.digest(stage.identity)})
    assert plan.state(stage, workspace) == plan.DONE
    words.write_text("A C\n")
    assert plan.state(stage, workspace) == plan.CHANGED
    with pytest.raises(ArtefactError, match=rf"\(the content of {words}\)"):
        plan.check_unchanged(stage, workspace)


def test_where_a_file_has_moved_to() -> None:
    moved = fingerprint.moved(
        ["/disk/a/LibriSpeech", "/lists/train.csv", "/same"],
        ["/scratch/7/LibriSpeech", "/scratch/7/train.csv", "/same"],
    )
    assert moved == {"/disk/a": "/scratch/7", "/lists": "/scratch/7"}
    assert fingerprint.moved(["/a"], ["/a"]) == {}
    assert fingerprint.moved(["/a"], []) == {}


def test_the_seed_does_not_count_in_prepare(smoke: Recipe, tmp_path: Path) -> None:
    """Neither in its fingerprint, nor in what an interrupted one is compared with."""
    other = copy.deepcopy(smoke)
    other.seed += 1
    before, after = (plan.find(recipe, "prepare") for recipe in (smoke, other))
    assert (before.identity, before.config) == (after.identity, after.config)
    assert "seed" not in before.config


def test_the_name_of_a_column_is_no_path() -> None:
    node = {
        "_target_": "hubert_pretrain.corpora.folder.Folder",
        "root": "audio",
        "columns": {"path": "file", "text": "sentence"},
    }
    values = fingerprint.values_of(node, ())
    assert values["columns"] == {"path": "file", "text": "sentence"}
    assert Path(values["root"]).is_absolute()
