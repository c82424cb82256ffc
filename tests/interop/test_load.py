"""load_checkpoint: every readable kind is recognised by its content; all else is refused in one
line, and no code in a file runs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.model.checkpoint import load_model, load_tensors, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    projection_size=4,
)
VOCABULARY = ["<pad>", "<unk>", "|", *"AB"]
READABLE = [name for name, form in FORMATS.items() if form.readable]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<format>/<kind>/... of a pretrained and of a CTC model."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    for kind, head in (
        ("pretrain", CodebookHead(16, 4, 10)),
        ("ctc", CTCHead(16, len(VOCABULARY))),
    ):
        save_model(
            folder / "ours" / kind, Hubert(SMALL), head=head, extra={"vocabulary": VOCABULARY}
        )
        for name in READABLE:
            FORMATS[name].export(
                folder / name / kind / FORMATS[name].file, load_model(folder / "ours" / kind)
            )
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of one of them that a test may damage."""

    def make(form: str, kind: str) -> Path:
        shutil.copytree(exported / form / kind, tmp_path / "copy")
        return tmp_path / "copy" / FORMATS[form].file if form in FORMATS else tmp_path / "copy"

    return make


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
@pytest.mark.parametrize("form", [*READABLE, "ours"])
def test_names_do_not_matter(
    copy: Callable[[str, str], Path], tmp_path: Path, form: str, kind: str
) -> None:
    path = copy(form, kind)
    if path.is_file():
        side = path.with_name(f"{path.stem}.side.safetensors")
        path = path.rename(tmp_path / "model.bin")
        if side.exists():
            side.rename(tmp_path / "model.side.safetensors")
    loaded = load_checkpoint(path)
    assert loaded.kind == kind
    assert (loaded.report is None) is (form == "ours")
    if loaded.report is not None:
        assert loaded.report.format.startswith({"huggingface": "transformers"}.get(form, form))
    assert not loaded.model.training


def test_a_file_of_a_folder_loads_the_folder(exported: Path) -> None:
    for form in ("huggingface", "ours"):
        assert load_checkpoint(exported / form / "ctc" / "model.safetensors").kind == "ctc"
        assert load_checkpoint(exported / form / "ctc" / "config.json").kind == "ctc"


def test_reading_draws_no_random_numbers(exported: Path) -> None:
    state = torch.random.get_rng_state()
    for form in READABLE:
        load_checkpoint(exported / form / "pretrain" / FORMATS[form].file)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_is_read_as_fp32(copy: Callable[[str, str], Path]) -> None:
    path = copy("huggingface", "ctc")
    tensors = {
        name: tensor.bfloat16() for name, tensor in load_tensors(path / "model.safetensors").items()
    }
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    loaded = load_checkpoint(path)
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.head_state["linear.weight"], tensors["lm_head.weight"].float())


# -- bad input


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF....WAVEfmt ",
        b"hello\n" * 100,
        b"{}",
        b"PK\x03\x04 not really a zip",
        b"\x80\x02.",
    ],
)
def test_a_wrong_file_type(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "speech.pt").write_bytes(content)
    with pytest.raises(
        ArtefactError, match=r"speech\.pt: (is no checkpoint|cannot be read|holds)"
    ) as caught:
        load_checkpoint(tmp_path / "speech.pt")
    assert "\n" not in str(caught.value)


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist; expected fairseq"):
        load_checkpoint(tmp_path / "no.pt")
    with pytest.raises(ArtefactError, match=r"config\.json: none that can be read, expected"):
        load_checkpoint(tmp_path)


def test_the_name_of_a_model_on_a_hub() -> None:
    with pytest.raises(
        ArtefactError,
        match=r"does not exist; nothing is downloaded: .*run "
        r"`hf download facebook/hubert-base-ls960 --local-dir hubert-base-ls960`",
    ):
        load_checkpoint("facebook/hubert-base-ls960")


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("fairseq", "checkpoint.pt"),
        ("huggingface", "model.safetensors"),
        ("huggingface", "config.json"),
        ("ours", "model.safetensors"),
    ],
)
def test_a_pointer_of_git_lfs(copy: Callable[[str, str], Path], form: str, file: str) -> None:
    """git leaves such a file in place of a large one while git-lfs is not installed."""
    path = copy(form, "pretrain")
    target = path / file if path.is_dir() else path
    target.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 378\n")
    with pytest.raises(ArtefactError, match=rf"{file}: is a pointer of git-lfs.*`git lfs pull`"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_a_named_file_beside_our_config(copy: Callable[[str, str], Path], kind: str) -> None:
    path = copy("ours", kind)
    tensors = load_tensors(path / "model.safetensors")
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(other, path / "step=7.safetensors")
    state = load_checkpoint(path / "step=7.safetensors").model.state_dict()
    assert all(torch.equal(tensor, other[f"hubert.{name}"]) for name, tensor in state.items())


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
@pytest.mark.parametrize("form", READABLE)
def test_a_truncated_file(copy: Callable[[str, str], Path], form: str, share: float) -> None:
    path = copy(form, "pretrain")
    file = path / "model.safetensors" if path.is_dir() else path
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(ArtefactError, match=f"{file.name}: (cannot be read|is no checkpoint)"):
        load_checkpoint(path)


class Bomb:
    """Creates a file when it is unpickled without protection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["fairseq", "s3prl", "torchaudio", "pytorch_model.bin", "alone"])
def test_a_pickle_that_runs_code(
    copy: Callable[[str, str], Path], tmp_path: Path, place: str
) -> None:
    """The file is read where its other content is enough, and refused otherwise; in both cases its
    code does not run.
    """
    sentinel = tmp_path / "sentinel"
    bomb = Bomb(sentinel)
    if place == "alone":
        path = tmp_path / "bomb.pt"
        torch.save(bomb, path)
    elif place == "pytorch_model.bin":
        path = copy("huggingface", "ctc")
        weights: dict[str, Any] = load_tensors(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        torch.save({**weights, "hubert.bomb": bomb}, path / "pytorch_model.bin")
    else:
        path = copy(place, "pretrain")
        content = read_pickle(path)
        content.pop("task_state", None)  # holds objects of classes that are not installed
        torch.save({**content, "hubert_pretrain": bomb, "bomb": bomb}, path)
    if place == "alone":
        with pytest.raises(ArtefactError, match=r"bomb\.pt: holds"):
            load_checkpoint(path)
    else:
        load_checkpoint(path)
    assert not sentinel.exists()


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = read_pickle(path)
    content.pop("task_state", None)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("form", "weights", "name"),
    [
        ("fairseq", "model", "encoder.layers.1.fc1.weight"),
        ("s3prl", "model_weight", "encoder.pos_conv.0.weight_g"),
        ("torchaudio", None, "wav2vec2.encoder.transformer.layers.0.attention.k_proj.weight"),
    ],
)
def test_a_missing_and_an_unknown_key(
    copy: Callable[[str, str], Path], form: str, weights: str | None, name: str
) -> None:
    path = copy(form, "pretrain")
    rewrite(path, lambda content: (content[weights] if weights else content).pop(name))
    with pytest.raises(
        ArtefactError, match=f"{path.name}: 1 tensors are missing, first .*{name[-12:]}"
    ):
        load_checkpoint(path)
    rewrite(
        path,
        lambda content: (content[weights] if weights else content).update({name: torch.zeros(2)}),
    )
    with pytest.raises(
        ArtefactError, match=f"{path.name}: does not fit the network: .* ha(s|ve) shape .* expected"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("fairseq", lambda content: content["model"].update(label_embs_concat=torch.zeros(()))),
        ("fairseq", lambda content: content["cfg"].update(model={"conv_feature_layers": 3})),
        ("fairseq", lambda content: content["cfg"]["model"].update(encoder_layers=None)),
        ("s3prl", lambda content: content.update(dictionaries_symbols=7, model_cfg="x")),
        (
            "torchaudio",
            lambda content: content.update(
                {"wav2vec2.encoder.feature_projection.projection.weight": torch.zeros(())}
            ),
        ),
    ],
)
def test_parts_with_the_right_names_and_wrong_types(
    copy: Callable[[str, str], Path], form: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = copy(form, "pretrain")
    rewrite(path, change)
    with pytest.raises(ArtefactError, match=path.name) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_another_architecture(copy: Callable[[str, str], Path]) -> None:
    path = copy("fairseq", "pretrain")
    rewrite(path, lambda content: content["cfg"]["model"].update(_name="wav2vec2"))
    with pytest.raises(
        ArtefactError,
        match="holds a 'wav2vec2' network, expected fairseq's 'hubert' or 'hubert_ctc'",
    ):
        load_checkpoint(path)
    rewrite(
        path,
        lambda content: (
            content["cfg"]["model"].update(_name="hubert"),
            content["model"].update({"quantizer.vars": torch.ones(2)}),
        ),
    )
    with pytest.raises(
        ArtefactError,
        match=r"1 weights have no place in our network, first quantizer\.vars; "
        "its architecture is another",
    ):
        load_checkpoint(path)


def test_another_architecture_in_a_folder(copy: Callable[[str, str], Path]) -> None:
    path = copy("huggingface", "ctc")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "wavlm"}))
    with pytest.raises(
        ArtefactError, match=r"config\.json: model_type is 'wavlm', expected 'hubert'"
    ):
        load_checkpoint(path)
    for change, found in (
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"hidden_size": "wide"}, "makes no network"),
    ):
        (path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ArtefactError, match=found):
            load_checkpoint(path)


def test_a_vocabulary_that_does_not_fit_the_head(
    copy: Callable[[str, str], Path], exported: Path, tmp_path: Path
) -> None:
    path = copy("huggingface", "ctc")
    (path / "vocab.json").write_text(json.dumps({f"<{row}>": row for row in range(6)}))
    with pytest.raises(
        ArtefactError,
        match=r"vocab\.json: the vocabulary does not fit the head: 6 symbols"
        ".*where 5 were expected",
    ):
        load_checkpoint(path)
    (tmp_path / "dict.km.txt").write_text("".join(f"{cluster} 1\n" for cluster in range(9)))
    with pytest.raises(
        ArtefactError,
        match=r"the dictionary does not fit the head: 13 symbols.*where 14 were expected",
    ):
        load_checkpoint(
            exported / "fairseq" / "pretrain" / "checkpoint.pt", dictionary=tmp_path / "dict.km.txt"
        )
    (tmp_path / "dict.km.txt").write_text("0 1\nno count\n")
    with pytest.raises(
        ArtefactError, match=r"dict\.km\.txt: line 2 is 'no count', expected a symbol and a count"
    ):
        load_checkpoint(
            exported / "fairseq" / "pretrain" / "checkpoint.pt", dictionary=tmp_path / "dict.km.txt"
        )


def test_weights_that_are_not_finite(copy: Callable[[str, str], Path]) -> None:
    path = copy("huggingface", "ctc")
    tensors = load_tensors(path / "model.safetensors")
    tensors["lm_head.bias"][1] = float("nan")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtefactError, match=r"linear\.bias holds numbers that are not finite"):
        load_checkpoint(path)


def test_overrides(exported: Path) -> None:
    for form in [*READABLE, "ours"]:
        path = exported / form / "pretrain" / (FORMATS[form].file if form in FORMATS else "")
        assert load_checkpoint(path, layerdrop=0.5).model.config.layerdrop == 0.5
        with pytest.raises(ConfigError, match="did you mean 'layerdrop'"):
            load_checkpoint(path, layer_drop=0.5)


def test_checkpoints_of_a_training_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    old = tmp_path / "step=00000010.ckpt"
    torch.save({"about": {}, "global_step": 10, "state_dict": {}}, old)
    with pytest.raises(ArtefactError, match=r"an older version of this project; resume"):
        load_checkpoint(old)
    parts = tmp_path / "step=00000020.ckpt"
    parts.mkdir()
    (parts / "rest.pt").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"rest\.pt: not readable as plain containers"):
        load_checkpoint(parts)


def test_a_checkpoint_that_ranks_wrote_in_parts(exported: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(exported / "ours" / "ctc")
    state = {f"model.{name}": tensor for name, tensor in whole.model.state_dict().items()}
    state |= {f"head.{name}": tensor for name, tensor in whole.head_state.items()}
    folder = tmp_path / "step=00000020.ckpt"
    folder.mkdir()
    names = sorted(state)
    for number, part in enumerate([names[::2], names[1::2]], start=1):
        save_file(
            {f"weights/{name}": state[name].contiguous() for name in part},
            folder / f"shard-{number:05d}-model-00001-of-00001.safetensors",
        )
    network = {key: value for key, value in whole.config.items() if key != "extra"}
    about = {"extra": whole.extra}
    torch.save({"about": about, "global_step": 20, "network": network}, folder / "rest.pt")
    found = load_checkpoint(folder)
    assert found.kind == "ctc"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    assert found.head_state.keys() == whole.head_state.keys()
