"""Values that cannot be are refused before anything runs, all of them in one message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hubert_pretrain.config import compose, schema
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.fields import sections
from hubert_pretrain.model.config import HubertConfig

P = "iterations.it1.pretrain"
C = "iterations.it1.clustering"
WRONG = [
    "iterations.it2.features.layer=99",
    "iterations.it2.features.layer=first",
    f"{P}.probe.layer=9",
    "export.format=hf",
    "export.licence=Apache 2.0",
    "export.languages=[English]",
    "iterations.it1.layer_choice.criterion=pnm",
    "trainer.precision=bf16-mixd",
    "trainer.accelerator=gppu",
    "trainer.fuse=0",
    "trainer.keep_checkpoints=0",
    f"{P}.valid_every_steps=0",
    f"{P}.log_every_steps=0",
    f"{P}.checkpoint_every_steps=0",
    "finetune.asr.valid_every_steps=0",
    "trainer.devices=0",
    "trainer.devices=-1",
    "trainer.num_nodes=0",
    "finetune.asr.final_lr_scale=0",
    f"{P}.mask.probability=1.5",
    "finetune.asr.channel_mask.probability=-0.1",
    f"{P}.betas=[0.9]",
    f"{P}.betas=[0.9,1.0]",
    "finetune.speakers.task.label=spaker",
    f"{C}.fraction=-1",
    f"{C}.fraction=2",
    f"{C}.max_hours=0",
    "iterations.it1.switch_penalty=-1",
    f"{C}.batch_frames=0",
    f"{C}.n_clusters=0",
    f"{C}.n_clusters=70000",
    f"{P}.max_shapes=0",
    f"{P}.weight_decay=-1",
    f"{P}.ema_decay=1.5",
    f"{P}.warmup_fraction=2",
    f"{P}.schedule=cosin",
    f"{P}.max_gradient_spike=0.5",
    "finetune.asr.max_gradient_spike=-1",
    f"{P}.decay_fraction=0",
    f"{P}.weight_decay_on=matrix",
    f"{P}.learning_rate=nan",
    f"{P}.learning_rate=inf",
    "trainer.loader_workers=-1",
    "trainer.signals=[SIGKILL]",
    "data.valid_fraction=5",
    "model.layerdrop=1",
    "model.hidden_act=swish",
    "model.num_hidden_layers=0",
    "launch.resources.nodes=0",
    "finetune.asr.task.case=uper",
    "iterations.it1.features.hop_seconds=nan",
    "iterations.it1.features.hop_seconds=x",
    "finetune.asr.task.final_dropout=1.5",
    "data.corpus.minutes=long",
    "data.corpus.voices=amy",
]
"""Words of the command line; each is wrong alone."""


@pytest.mark.parametrize("word", WRONG)
def test_a_value_that_cannot_be_is_one_line(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ConfigError) as wrong:
        compose.recipe_of(["+recipe=smoke", word])
    message = str(wrong.value)
    assert message.startswith(f"{key}=")
    assert ": expected " in message
    assert "\n" not in message


def test_all_faults_at_once() -> None:
    words = [word for word in WRONG if not word.endswith("-1") and "betas=[0.9]" not in word]
    keys = {word.partition("=")[0] for word in words} - {"iterations.it2.features.layer"}
    keys -= {f"{P}.probe.layer"}  # compared with the model, which is wrong here
    with pytest.raises(ConfigError, match=rf"^{len(keys)} faults of the configuration\n") as wrong:
        compose.recipe_of(["+recipe=smoke", *words])
    assert {line.strip().partition("=")[0] for line in str(wrong.value).splitlines()[1:]} == keys


def test_values_of_a_wrong_type_are_among_them() -> None:
    words = [
        "trainer.devices=auto",
        f"{P}.steps=many",
        f"{P}.micro_batch_seconds=long",  # the default does not divide 3 s: no further fault
        f"{P}.batch_seconds=3",
        "trainer.tf32=maybe",
        "trainer.fuse=0",
        "export.format=hf",
    ]
    with pytest.raises(ConfigError, match=r"^6 faults of the configuration\n") as wrong:
        compose.recipe_of(["+recipe=smoke", *words])
    lines = [line.strip() for line in str(wrong.value).splitlines()[1:]]
    assert lines[:2] == [
        "trainer.devices='auto': expected a whole number",
        f"{P}.steps='many': expected a whole number",
    ]
    assert [line.partition("=")[0] for line in lines[2:]] == [
        f"{P}.micro_batch_seconds",
        "trainer.tf32",
        "export.format",
        "trainer.fuse",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.hidden_act=selu", "export.format=fairseq"],
            r"cannot hold model\.hidden_act=selu: .*; choose onnx or torch",
        ),
        (["model.hidden_act=selu"], r"=huggingface cannot hold model\.hidden_act=selu"),
        (["model.hidden_act=relu", "export.format=torchaudio"], r"cannot hold model\.hidden_act"),
        (["model=fast_base", "export.format=s3prl"], r"cannot hold model\.front_end=log_mel"),
        (
            ["iterations.it2.pretrain.loss.head=softmax", "export.format=fairseq"],
            r"cannot hold the softmax head of it2/pretrain",
        ),
        (["export.format=fairseq"], r"cannot hold finetune/speakers"),
    ],
)
def test_a_network_that_the_export_cannot_hold(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose.recipe_of(["+recipe=smoke", *words])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("features.layer=[1,2]", "switch_penalty=1 needs one codebook over all columns"),
        ("clustering.codebooks=[{name: a}]", "switch_penalty=1 needs one codebook"),
    ],
)
def test_targets_that_cannot_be_smoothed(word: str, message: str) -> None:
    smoothed = "iterations.it2.switch_penalty=1"
    with pytest.raises(ConfigError, match=message):
        compose.recipe_of(["+recipe=smoke", smoothed, f"iterations.it2.{word}"])


def test_every_number_has_a_range() -> None:
    """Numbers that may be anything are named here."""
    free = {"seed"}
    recipe = schema.Recipe(
        iterations={"it1": schema.IterationConfig()},
        finetune={"asr": schema.FinetuneConfig()},
        launch=schema.LaunchConfig(stages={"pretrain": schema.ResourcesConfig()}),
    )
    numbers = [
        (key, each)
        for key, section in sections(recipe)
        for each in dataclasses.fields(section)
        if set(str(each.type).replace("|", " ").replace("[", " ").replace("]", " ").split())
        & {"int", "float"}
    ]
    assert len(numbers) > 100
    bare = {
        f"{key}.{each.name}".lstrip(".")
        for key, each in numbers
        if each.metadata.get("allowed") is None
    }
    assert bare <= free | MAPPINGS


MAPPINGS = {
    "iterations.it1.pretrain.corpus_weights",
    "iterations.it1.pretrain.loss.supervised_layers",
}
"""Checked with other fields (validate.py)."""


def test_a_network_has_all_its_faults_in_one_message() -> None:
    values: dict[str, Any] = {"hidden_act": "x", "hidden_size": -3, "conv_dim": [0]}
    with pytest.raises(ConfigError, match="3 faults") as wrong:
        HubertConfig(**values).validate()
    for name in values:
        assert f"model.{name}=" in str(wrong.value)
