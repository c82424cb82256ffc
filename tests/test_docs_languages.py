"""The example of docs/finetuning.md, "Languages", runs as it is written there, with a tiny encoder
and few steps: two languages on one frozen encoder are trained, chosen, scored and exported.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain import SpeechRecognizer, load_checkpoint
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import languages
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.finetune import load_encoder
from hubert_pretrain.stages.runner import run_stage
from tests.finetune.conftest import TINY, make_corpus

PAGE = Path(__file__).resolve().parent.parent / "docs" / "finetuning.md"
LARGE = dataclasses.replace(TINY, do_stable_layer_norm=True, feat_extract_norm="layer")
QUICK = ("steps=2", "batch_seconds=3", "micro_batch_seconds=3", "valid_every_steps=2")
WORDS = [f"finetune.{name}.{word}" for name in ("eng", "deu") for word in QUICK]
MORE = ["trainer=cpu", "data.workers=1", "trainer.loader_workers=0"]
MORE += [f"model.{name}={getattr(LARGE, name)}" for name in ("hidden_size", "intermediate_size")]
MORE += [
    "model.num_attention_heads=2",
    "model.num_hidden_layers=2",
    "model.conv_dim=[8,8,8,8,8,8,8]",
]  # for the check of the disk


def blocks() -> list[str]:
    """The blocks of the section: recipe, commands, our Python, that of transformers."""
    section = PAGE.read_text().split("\n## Languages")[1].split("\n## ")[0]
    return re.findall(r"```\w*\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the reader: speech.csv with two languages, their encoder, the recipe."""
    place = tmp_path_factory.mktemp("languages")
    torch.manual_seed(0)
    save_model(place / "hubert_large_ll60k.pt", Hubert(LARGE), head=CodebookHead(16, 8, 5))
    manifest = make_corpus(place / "recordings", utterances=18).manifest
    lines = ["path,text,split"]
    for number in range(len(manifest)):
        each = manifest[number]
        split = ("train", "valid", "test")[number // 2 % 3]
        is_german = number % 2 == 1
        text = each.text.replace("D", "Ä") if is_german else each.text
        lines.append(f"{each.path},{text},{'deu-' if is_german else ''}{split}")
    (place / "speech.csv").write_text("\n".join(lines) + "\n")
    (place / "recipes" / "languages").mkdir(parents=True)
    (place / "recipes" / "languages" / "recipe.yaml").write_text(blocks()[0])
    shutil.copy(manifest[0].path, place / "speech.wav")
    return place


@pytest.fixture(scope="module")
def run(place: Path) -> Workspace:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        recipe = composed(place)
        workspace = Workspace(recipe.work_dir)
        for stage in plan.stages(recipe):
            run_stage(recipe, workspace, stage)
        return Workspace(Path(recipe.work_dir).absolute())


def composed(place: Path, *words: str) -> Recipe:
    train = shlex.split(blocks()[1].splitlines()[0])[1:]
    return compose.recipe_of([*train, *WORDS, *MORE, *words])


def test_one_encoder_two_languages(place: Path, run: Workspace) -> None:
    """The encoder is that of pretraining; English, beside German, is what it was."""
    start = load_checkpoint(place / "hubert_large_ll60k.pt").model.state_dict()
    first, second = (run.folder(f"finetune/{name}") for name in ("eng", "deu"))
    assert languages(first) == ["eng"]
    assert languages(second) == ["deu", "eng"]
    english = load_checkpoint(first)
    german = load_checkpoint(second)
    moved = 0
    for loaded in (english, german):
        stored = loaded.model.state_dict()
        assert all(torch.equal(stored[name], tensor) for name, tensor in start.items())
        moved += sum(bool(each.any()) for name, each in stored.items() if ".adapter.up." in name)
    assert moved == 8  # weight and bias of two layers, twice; new ones are 0
    assert "ä" in german.extra["vocabulary"]
    assert "D" in english.extra["vocabulary"]
    again = load_checkpoint(second, target_lang="eng")
    assert again.extra == english.extra
    for name, tensor in {**english.model.state_dict(), **english.head_state}.items():
        assert torch.equal(tensor, {**again.model.state_dict(), **again.head_state}[name])


def test_a_language_is_scored_beside_others_as_alone(run: Workspace) -> None:
    alone = run.artefact("evaluate/eng/test").facts
    beside = run.artefact("evaluate/eng_beside_deu/test").facts
    other = run.artefact("evaluate/deu/deu-test").facts
    assert (beside["wer"], beside["cer"]) == (alone["wer"], alone["cer"])
    names = ("eng/test", "eng_beside_deu/test", "deu/deu-test")
    tables = [(run.folder(f"evaluate/{name}") / "hypotheses.tsv").read_text() for name in names]
    assert tables[0] == tables[1]
    assert "ä" in tables[2]  # lower case: the rules of the texts are its own
    assert other["utterances"] == 3


def test_commands_and_python_of_the_page(
    place: Path,
    run: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    _, commands, ours, theirs = blocks()
    _, evaluate, transcribe = commands.splitlines()
    for line, expected in ((evaluate, "| wer |"), (transcribe, "speech.wav\t")):
        _, command, *words = shlex.split(line)
        assert importlib.import_module(f"hubert_pretrain.tools.{command}").main(words) == 0
        shown = capsys.readouterr().out
        assert expected in shown, line
    english = shown.strip().split("\t")[1]
    exec(compile(ours, "ours", "exec"), {})
    found = capsys.readouterr().out.splitlines()
    assert found[0] == english
    assert found[0] != found[1]
    exec(compile(theirs, "theirs", "exec"), {})
    assert capsys.readouterr().out.splitlines() == found
    exported = run.folder("export") / "finetune" / "deu"
    shutil.copy("speech.wav", exported)
    card = (exported / "README.md").read_text()
    assert "Languages: `deu` `eng`." in card
    monkeypatch.chdir(exported)
    exec(compile(card.split("```python\n")[1].split("```")[0], "card", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == found[1]


def test_a_recogniser_exchanges_languages(run: Workspace) -> None:
    """As often as one likes, with the outputs of a recogniser of that language alone."""
    folder = run.folder("finetune/deu")
    waveform = torch.from_numpy(np.random.default_rng(0).normal(size=8000).astype(np.float32))

    def output(recogniser: SpeechRecognizer) -> np.ndarray:
        return np.concatenate(list(recogniser.log_probabilities(waveform)))

    recogniser = SpeechRecognizer.load(folder)
    for name in ("deu", "eng", "deu"):
        recogniser.set_target_lang(name)
        alone = SpeechRecognizer.load(folder, target_lang=name)
        assert recogniser.target_lang == alone.target_lang == name
        assert recogniser.vocabulary == alone.vocabulary
        assert np.array_equal(output(recogniser), output(alone))
    with pytest.raises(ArtefactError, match="set target_lang to one of deu, eng"):
        recogniser.set_target_lang("fra")
    assert recogniser.target_lang == "deu"


def test_a_language_goes_on_or_begins_anew(
    place: Path, run: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """start_head=keep starts from the adapters that are there, else from adapters that change
    nothing; a width of another language is refused.
    """
    monkeypatch.chdir(place)
    recipe = composed(place)
    folder = run.folder("finetune/deu")
    stored = load_checkpoint(folder, target_lang="eng")

    def start(**changes: object) -> dict[str, torch.Tensor]:
        config = dataclasses.replace(recipe.finetune["eng"], **changes)
        task = compose.build(config.task)
        return load_encoder(recipe, config, task, folder, 1, "finetune.eng").model.state_dict()

    going_on = start(start_head="keep")
    expected = stored.model.state_dict()
    assert all(torch.equal(going_on[name], each) for name, each in expected.items())
    new = start()
    for name, each in new.items():
        if ".adapter.up." in name:
            assert not each.any()
    with pytest.raises(ConfigError, match=r"finetune.eng.adapter_attn_dim=4: the languages of .*"):
        start(adapter_attn_dim=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune.eng.lora.rank=4"], "target_lang=eng trains adapters"),
        (["finetune.eng.freeze_encoder_steps=2"], "target_lang=eng trains nothing with"),
        (["finetune.eng.conv_gradient_scale=0.1"], "the conv encoder is frozen with"),
        (
            ["finetune.eng.target_lang=null", "finetune.eng.adapter_attn_dim=8"],
            "needs finetune.eng.t",
        ),
        (["finetune.eng.target_lang=de/ch"], "expected the name of a language"),
        (["export.format=fairseq"], "cannot hold model.adapter_attn_dim=16"),
        (["export.format=huggingface"], "transformers ignores adapters of a post-norm model"),
    ],
)
def test_settings_that_do_not_go_with_it(
    place: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    base = ["model=base"] if "huggingface" in words[0] else []
    with pytest.raises(ConfigError, match=re.escape(message)):
        composed(place, *base, *words)


def test_a_task_without_vocabulary_has_no_languages(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    text = blocks()[0].replace("/finetune@finetune.eng: ctc", "/finetune@finetune.eng: classify")
    (place / "recipes" / "classes").mkdir(exist_ok=True)
    (place / "recipes" / "classes" / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match="ClassifyTask has none; remove it"):
        compose.recipe_of(["+recipe=classes", *WORDS, *MORE])


def test_the_adapter_files_are_named_in_meta_json(run: Workspace) -> None:
    """So a task that starts from another is stale once that one was trained again."""
    meta = json.loads((run.folder("finetune/deu") / "meta.json").read_text())
    assert {"adapter.deu.safetensors", "adapter.eng.safetensors"} <= meta["sha256"].keys()
