"""The speaker-invariant stage: what it trains and what not, its codebook, interruptions, ranks, and
recipes that cannot be.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import (
    IterationConfig,
    Recipe,
    SpeakerPerturbation,
    SpinConfig,
)
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.files import write_json
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.preflight import budget
from hubert_pretrain.pretrain.spin_module import SpinModule
from hubert_pretrain.stages import label
from hubert_pretrain.stages.spin import build_module, describe_speakers, open_spin, run
from hubert_pretrain.stages.units import load_units
from hubert_pretrain.targets.store import TargetStore
from tests.killed import killed_at_micro_batch
from tests.pretrain.conftest import make_recipe, make_workspace, model_config
from tests.ranks import outputs_of_two_ranks

CONFIG = SpinConfig(
    checkpoint="it1/pretrain",
    n_codewords=12,
    n_layers=1,
    projection_size=8,
    steps=6,
    batch_seconds=8,
    micro_batch_seconds=4,
    learning_rate=1e-2,
    min_seconds=0.5,
    max_crop_seconds=1.2,
    max_shapes=2,
    log_every_steps=2,
    valid_every_steps=3,
    checkpoint_every_steps=2,
)


def spin_recipe(**changes: Any) -> Recipe:
    recipe = make_recipe(trainer=changes.pop("trainer", None))
    mfcc = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
    first = dataclasses.replace(recipe.iterations["it1"], features=mfcc)
    spin = dataclasses.replace(CONFIG, **changes)
    return dataclasses.replace(recipe, iterations={"it1": first}, spin={"it1": spin})


def with_checkpoint(workspace: Workspace, **changes: Any) -> Workspace:
    """With a finished `it1/pretrain`."""
    torch.manual_seed(0)
    folder = workspace.folder("it1/pretrain")
    save_model(folder, Hubert(model_config(hidden_dropout=0.1, **changes)))
    write_json(folder / META, {"format": FORMAT, "fingerprint": "it1/pretrain", "facts": {}})
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return with_checkpoint(make_workspace(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def whole(workspace: Workspace) -> dict[str, Any]:
    """Facts of an uninterrupted stage; its folder is that of a finished one."""
    folder = workspace.folder("spin/it1")
    facts = run(spin_recipe(), workspace, "spin/it1", folder)
    config = plan.find(spin_recipe(), "spin/it1").config
    meta = {"format": FORMAT, "fingerprint": "spin/it1", "facts": facts, "config": config}
    write_json(folder / META, meta)
    return facts


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_model(folder)
    head = {f"head.{name}": value for name, value in loaded.head_state.items()}
    return {**loaded.model.state_dict(), **head}


def test_only_the_last_layers_change(workspace: Workspace, whole: dict[str, Any]) -> None:
    before = load_model(workspace.folder("it1/pretrain")).model.state_dict()
    after = load_model(workspace.folder("spin/it1")).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learning = {name for name in before if name.startswith("context_encoder.layers.1.")}
    # (Attention does not depend on the bias of its keys.)
    assert changed <= learning
    assert len(changed) > 0.8 * len(learning)
    assert load_model(workspace.folder("spin/it1")).model.config == model_config(hidden_dropout=0.1)


def test_facts(whole: dict[str, Any]) -> None:
    assert whole["steps"] == 6
    assert whole["n_codewords"] == 12
    assert 0 < whole["agreement"] <= 1
    assert 1 < whole["perplexity"] <= 12
    assert whole["loss"] > 0


def test_the_codebook_gives_the_codeword_of_the_head(
    workspace: Workspace, whole: dict[str, Any]
) -> None:
    """As units of the last layer, for a later iteration or extract-units."""
    folder = workspace.folder("spin/it1")
    codebook = CodebookSet.load(workspace.resolve("spin/it1").path)
    extractor = HubertLayer(folder, 2)
    codebook.check_features(extractor)
    noise = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    frames = extractor(noise).clone()  # it comes from inference mode
    head = load_model(folder).build_head()
    assert float(head.projection.bias.detach().abs().max()) > 0
    scores = head(frames).topk(2).values
    is_clear = scores[..., 0] - scores[..., 1] > 1e-3
    assert is_clear.float().mean() > 0.9
    assert torch.equal(codebook.assign(frames)[is_clear], head(frames).argmax(-1)[is_clear])
    assert load_units(folder).codebooks.fingerprint == codebook.fingerprint


def test_a_later_iteration_takes_its_frames_and_its_codewords(
    workspace: Workspace, whole: dict[str, Any], tmp_path: Path
) -> None:
    recipe = spin_recipe()
    kind = "hubert_pretrain.features.hubert_layer.HubertLayer"
    features = {"_target_": kind, "checkpoint": "spin/it1", "layer": 2}
    second = IterationConfig(features=features, codebook="spin/it1")
    recipe.iterations["it2"] = second
    facts = label.run(recipe, workspace, "it2/label", tmp_path)
    assert facts["n_clusters"] == 12
    targets = TargetStore.open(tmp_path)
    corpus = Corpus.open(workspace.folder("prepare"))
    loaded = open_spin(workspace, "it1")
    with torch.no_grad():
        frames = loaded.model(torch.from_numpy(corpus.read(0))[None], layers=2).last[0]
        expected = loaded.build_head()(frames).argmax(-1)
    assert (torch.from_numpy(targets.targets(0).astype(np.int64)) == expected).float().mean() > 0.9


def test_a_killed_stage_resumes_to_the_bit(
    workspace: Workspace, whole: dict[str, Any], tmp_path: Path
) -> None:
    recipe = spin_recipe()
    with killed_at_micro_batch(9, SpinModule):  # in step 5; the last checkpoint is of step 4
        run(recipe, workspace, "spin/it1", tmp_path)
    assert list((tmp_path / "checkpoints").glob("step=*4.ckpt"))
    facts = run(recipe, workspace, "spin/it1", tmp_path)
    expected = weights(workspace.folder("spin/it1"))
    found = weights(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    unlike = ("audio_seconds_per_second",)
    assert {k: v for k, v in facts.items() if k not in unlike} == {
        k: v for k, v in whole.items() if k not in unlike
    }


def test_frozen_layers_have_no_dropout_and_no_gradient(workspace: Workspace) -> None:
    loaded = load_model(workspace.folder("it1/pretrain"))
    module = build_module(spin_recipe(), CONFIG, loaded, seed=1)
    module.eval()
    module.train()
    modes = {name for name, part in module.model.named_modules() if part.training}
    assert modes
    assert all(name.startswith("context_encoder.layers.1") for name in modes)
    learning = {name for name, each in module.model.named_parameters() if each.requires_grad}
    assert learning == {
        name
        for name, _ in module.model.named_parameters()
        if name.startswith("context_encoder.layers.1.")
    }
    torch.testing.assert_close(module.head.unit_embeddings.norm(dim=1), torch.ones(12))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(workspace: Workspace, tmp_path: Path, precision: str) -> None:
    recipe = spin_recipe(trainer={"precision": precision}, steps=1)
    facts = run(recipe, workspace, "spin/it1", tmp_path)
    assert np.isfinite(facts["loss"])


TWO_RANKS = """
import sys, torch
from pathlib import Path
from hubert_pretrain import distributed
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.swapped_prediction import swapped_prediction
from hubert_pretrain.stages.spin import run
from tests.pretrain.test_spin import spin_recipe

root = Path(sys.argv[1])
with distributed.group():
    views = torch.load(root / "views.pt")
    mine = [view[distributed.rank() * 30 : (distributed.rank() + 1) * 30] for view in views]
    loss = swapped_prediction(*mine, temperature=0.1, epsilon=0.05, iterations=3).loss
    print("loss", float(distributed.sum_over_ranks(loss)))
recipe = spin_recipe(trainer={"devices": 2, "strategy": "ddp"}, steps=2)
facts = run(recipe, Workspace(root / "run"), "spin/it1", root / "out")
print("agreement", facts["agreement"], "perplexity", facts["perplexity"])
"""


def test_two_ranks(tmp_path: Path) -> None:
    """Equal shares are those of the frames of both, and both come to the same end."""
    from hubert_pretrain.pretrain.swapped_prediction import swapped_prediction
    from tests.pretrain.test_swapped_prediction import cosines

    views = [cosines(seed=1) / 0.1, cosines(seed=3) / 0.1]
    torch.save(views, tmp_path / "views.pt")
    with_checkpoint(make_workspace(tmp_path / "run"))
    first, second = outputs_of_two_ranks(TWO_RANKS, tmp_path)
    whole = swapped_prediction(*views, temperature=0.1, epsilon=0.05, iterations=3).loss
    halves = sum(
        swapped_prediction(*part, temperature=0.1, epsilon=0.05, iterations=3).loss
        for part in zip(*(view.split(30) for view in views), strict=True)
    )
    found = [float(re.findall(r"loss ([\d.]+)", text)[0]) for text in (first, second)]
    assert found == pytest.approx([float(whole)] * 2, rel=1e-5)
    assert abs(float(halves) - float(whole)) > 1e-3 * float(whole)
    line = r"agreement [\d.]+ perplexity .*"
    assert re.findall(line, first) == re.findall(line, second)
    assert (tmp_path / "out" / "codebook.json").exists()


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (["a"], "one speaker (a), so only the changed voices"),
        (["a", "b"], "2 speakers"),
        ([""], "speakers that nobody named"),
    ],
)
def test_one_speaker(speakers: list[str], expected: str) -> None:
    import pyarrow as pa

    class Manifest:
        def split_range(self, split: str) -> range:
            return range(len(speakers))

        def take(self, name: str, rows: object) -> pa.Array:
            return pa.array(speakers).dictionary_encode()

    class OneCorpus:
        manifest = Manifest()

    assert expected in describe_speakers(OneCorpus())  # type: ignore[arg-type]


def test_the_corpus_of_the_stage_names_its_speakers(workspace: Workspace) -> None:
    assert "nobody named" in describe_speakers(Corpus.open(workspace.folder("prepare")))


# -- recipes

WORDS = [
    "+recipe=demo",
    "+spin@spin.it1=tiny",
    "spin.it1.checkpoint=it1/pretrain",
    "iterations.it2.features.checkpoint=spin/it1",
]


def names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in plan.stages(recipe)]


def test_a_later_iteration_reads_it() -> None:
    recipe = compose.recipe_of(WORDS)
    assert names(recipe)[3:6] == ["it1/pretrain", "spin/it1", "it2/cluster"]
    assert plan.find(recipe, "it2/cluster").inputs == ("prepare", "spin/it1")


def test_its_codebook_stands_for_clusters() -> None:
    words = ["iterations.it2.codebook=spin/it1", "iterations.it2.features.layer=3"]
    recipe = compose.recipe_of([*WORDS, *words])
    assert names(recipe)[3:6] == ["it1/pretrain", "spin/it1", "it2/label"]
    assert plan.find(recipe, "it2/label").inputs == ("prepare", "spin/it1", "spin/it1")


def test_a_task_starts_from_it_and_it_from_a_task() -> None:
    words = ["spin.it1.checkpoint=finetune/asr", "iterations.it2.features.checkpoint=it1/pretrain"]
    words += ["finetune.asr.checkpoint=it2/pretrain", "finetune.speakers.checkpoint=spin/it1"]
    recipe = compose.recipe_of([*WORDS, *words])
    assert names(recipe)[7:10] == ["finetune/asr", "spin/it1", "finetune/speakers"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spin.it1.checkpoint=it2/pretrain"], "it2/cluster reads spin/it1 reads it2/pretrain: a "),
        (
            [
                "iterations.it3=${iterations.it2}",
                "iterations.it3.features.checkpoint=it2/pretrain",
                "spin.it1.checkpoint=it3/pretrain",
            ],
            "spin/it1 reads 'it3/pretrain', which runs after it",
        ),
        (["spin.it1.checkpoint=it7/pretrain"], "set spin.it1.checkpoint to one of them$"),
        (["spin.it1.perturbation.pitch_ratio=0.5"], "pitch_ratio=0.5: expected 1 or more"),
        (["trainer.devices=3", "stage=spin/it1"], "3"),
    ],
)
def test_recipes_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.stages(compose.recipe_of([*WORDS, *words]))


def test_every_fault_of_the_stage_is_named() -> None:
    faults = {
        "n_layers=4": "expected 1 to 3, the layers of the network",
        "projection_size=256": "expected at most 128",
        "n_codewords=2000": "more than the 249 frames of spin.it1.micro_batch_seconds=5",
        "micro_batch_seconds=5": "batch_seconds=16.0 is 3.200 x micro_batch_seconds=5.0",
        "max_crop_seconds=0.5": "is below min_seconds=1.0",
        "epsilon=0.001": "below 0.005",
        "perturbation.formant_ratio=1": "spin.it1.perturbation changes nothing",
    }
    words = [f"spin.it1.{word}" for word in faults]
    words += ["spin.it1.perturbation.pitch_ratio=1", "spin.it1.perturbation.equaliser_db=0"]
    with pytest.raises(ConfigError) as error:
        compose.recipe_of([*WORDS, *words, "iterations.it2.features.layer=4"])
    for message in [*faults.values(), "it2.features.layer=4: expected 1 to 3"]:
        assert message in str(error.value)


def test_networks_from_elsewhere_are_checked_when_they_are_read(
    tmp_path: Path, workspace: Workspace
) -> None:
    with pytest.raises(ConfigError, match=r"spin.it1.n_layers=3: expected 1 to 2"):
        run(spin_recipe(n_layers=3), workspace, "spin/it1", tmp_path)


def test_values_that_change_the_result_change_the_fingerprint() -> None:
    def identity(**changes: Any) -> dict[str, Any]:
        return plan.find(spin_recipe(**changes), "spin/it1").identity

    assert identity() != identity(epsilon=0.03)
    assert identity() != identity(perturbation=SpeakerPerturbation(pitch_ratio=1.5))
    assert identity() == identity(log_every_steps=7)


def test_cost(workspace: Workspace) -> None:
    """Two views forward, and the last layers backward: less than pretraining on the same audio."""
    recipe = compose.recipe_of(["+recipe=base_ls960", "data.root=/", "+spin@spin.it2=base"])
    works = {
        name: budget.work_of(plan.find(recipe, name), recipe.model, workspace).training
        for name in ("it2/pretrain", "spin/it2")
    }
    from hubert_pretrain.preflight.training_cost import operations_per_second, step_operations

    pretrain = works["it2/pretrain"]
    spin = works["spin/it2"]
    assert pretrain is not None
    assert spin is not None
    assert spin.audio_bytes == 2 * 256 * 16000 * 4
    assert 0.3 < operations_per_second(spin) / operations_per_second(pretrain) < 0.5
    total = spin.steps * step_operations(spin) / (pretrain.steps * step_operations(pretrain))
    assert 0.0005 < total < 0.002
