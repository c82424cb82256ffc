"""Words of the command line: any path is taken as it is, any key of a class can be set, and a word
that means nothing is one sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.words import grammatical, prepare
from hubert_pretrain.errors import ConfigError

PATHS = [
    "/home/müller",
    "音声",
    "a=b",
    "a,b",
    "a(1)",
    "a[1]",
    "a{1}",
    "[1] a",
    "a#1",
    "o'neil",
    "a&b;c",
    "~/speech",
    'with space/it\'s (new), [x]="1"',
    "back\\slash",
    "ends with\\",
    "plain/path-1.2",
]
FOLDER = ["+recipe=smoke", "data=folder"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_is(path: str) -> None:
    recipe = compose.recipe_of([*FOLDER, f"data.root={path}", f"work_dir={path}"])
    assert (recipe.data.root, recipe.work_dir, recipe.data.corpus["root"]) == (path, path, path)


@pytest.mark.parametrize("name", ["1_000", "1e3", "12", "007"])
def test_a_folder_may_look_like_a_number(name: str) -> None:
    assert compose.recipe_of(["+recipe=smoke", f"work_dir={name}"]).work_dir == name


@pytest.mark.parametrize("path", ["/home/müller/a=b", "a,b"])
def test_quotes_of_the_user_stay_quotes(path: str) -> None:
    assert compose.recipe_of([*FOLDER, f"data.root='{path}'"]).data.root == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a,b]", ["a", "b"]),
        ("[train-{000000..000099}.tar]", ["train-{000000..000099}.tar"]),
        ("[/home/müller/*.tar, b=1.tar]", ["/home/müller/*.tar", "b=1.tar"]),
        ("[x-{a,b}.tar,'q,r.tar']", ["x-{a,b}.tar", "q,r.tar"]),
        ("[a(1,b]", ["a(1", "b"]),
        ("[]", []),
    ],
)
def test_lists_of_shards(text: str, expected: list[str]) -> None:
    words = ["+recipe=smoke", "data=webdataset", "data.root=/x", f"data.corpus.train={text}"]
    assert compose.recipe_of(words).data.corpus["train"] == expected


@pytest.mark.parametrize("value", ["3", "[1,2]", "{a: 1}", "null", "true", "'x'", "1.5e-3", "a/b"])
def test_values_of_the_grammar_are_left_alone(value: str) -> None:
    assert grammatical("model.hidden_size", value) == value


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("columns={path: file, text: sentence}", {"path": "file", "text": "sentence"}),
        ("columns={text: Überschrift (neu)}", {"text": "Überschrift (neu)"}),
        ("columns.path=audio_filepath", {"path": "audio_filepath"}),
    ],
)
def test_a_mapping_with_free_keys(word: str, expected: Any) -> None:
    recipe = compose.recipe_of([*FOLDER, "data.root=/x", f"data.corpus.{word}"])
    assert recipe.data.corpus["columns"] == expected


def test_weights_and_corpora_of_a_mixture() -> None:
    node = "{_target_: hubert_pretrain.corpora.folder.Folder, root: /ü}"
    recipe = compose.recipe_of(
        [
            "+recipe=smoke",
            "data=mixture",
            f"data.corpus.corpora={{mine: {node}, yours: {node}}}",
            "iterations.it1.pretrain.corpus_weights={mine: 1, yours: 2}",
        ]
    )
    assert list(recipe.data.corpus["corpora"]) == ["mine", "yours"]
    assert recipe.iterations["it1"].pretrain.corpus_weights == {"mine": 1, "yours": 2}


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_an_argument_that_no_file_states(plus: str) -> None:
    recipe = compose.recipe_of(["+recipe=smoke", f"{plus}finetune.asr.task.zero_infinity=false"])
    assert recipe.finetune["asr"].task["zero_infinity"] is False


def test_a_new_part_of_a_named_section() -> None:
    words = ["launch.stages.pretrain.nodes=1", "launch.stages.it1/pretrain.cpus=3"]
    stages = compose.recipe_of(["+recipe=smoke", *words]).launch.stages
    assert stages["pretrain"].nodes == 1
    assert stages["it1/pretrain"].cpus == 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=3\r", r"^seed=3: ends with a carriage return"),
        ("model=null", r"^model=null: expected one of base, .*large"),
        ("logger=null", r"^logger=null: expected one of csv"),
        ("data=3", r"^data=3: expected one of common_voice"),
        ("++model=null", r"^\+\+model=null: expected one of base"),
        ("+features@iterations.it1.features=null", r"expected one of hubert_layer"),
        ("+recipe=", r"^\+recipe=: expected one of asr, base_ls100"),
        ("+recipe=null", r"^\+recipe=null: expected one of asr, base_ls100"),
        ("=3", r"^=3: expected KEY=VALUE"),
        ("a b=3", r"^a b=3: expected KEY=VALUE"),
        ("data.corpus=null", r"^data\.corpus: expected a `_target_`"),
        ("data.corpus._target_=nope.X", r"_target_=nope\.X: there is no module nope"),
        ("stage", r"^stage: expected KEY=VALUE"),
        ("seed=1,2", r"^seed='1,2': expected a whole number"),
        ("trainer.devices=auto", r"^trainer\.devices='auto': expected a whole number"),
        ("trainer.tf32=maybe", r"^trainer\.tf32='maybe': expected true or false"),
        ("iterations.it1.pretrain.betas=0.9", r"it1\.pretrain\.betas.*: expected a list"),
        ("finetune.asr.mask=null", r"^finetune\.asr\.mask: expected a value, not null"),
        ("finetune=ctc", r"^finetune: expected keys inside it"),
        ("data.corpus.train=a", r"Synthetic has no such argument"),
        ("+recipe=/no/file.yaml", r"there is no file /no/file\.yaml"),
    ],
)
def test_a_word_that_cannot_be_is_one_sentence(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as wrong:
        compose.recipe_of(["+recipe=smoke", word])
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize("word", ["data=folder", "+data=folder", "++data=folder"])
def test_a_choice_needs_no_plus_sign(word: str) -> None:
    recipe = compose.recipe_of(["+recipe=smoke", word, "data.root=/x"])
    assert recipe.data.corpus["_target_"].endswith(".Folder")


def test_values_of_options_are_left_alone() -> None:
    words = ["--config-dir", "/ü/a.b=c", "seed=2"]
    assert prepare(words, {}) == ["--config-dir", "/ü/a.b=c", "++seed=2"]


def test_the_words_of_a_run_compose_the_same_recipe(tmp_path: Path) -> None:
    words = ["+recipe=smoke", f"work_dir={tmp_path}/ü=1", "data.corpus.seed=3"]
    again = compose.prepare(compose.prepare(words))
    assert compose.recipe_of(again) == compose.recipe_of(words)
