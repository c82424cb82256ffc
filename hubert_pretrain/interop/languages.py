"""Languages of a checkpoint, read and chosen: files of this project, and those of `transformers`
(MMS), whose adapters and head have the names of Wav2Vec2ForCTC and whose vocabularies stand in one
`vocab.json`, {language: {symbol: row}}.

`transformers` exchanges languages in Wav2Vec2ForCTC only: `load_adapter` of HubertForCTC is that of
peft, and fails. The two classes compute the same network, so an export with languages is a
Wav2Vec2ForCTC (transformers_writer.py). It builds adapters with `do_stable_layer_norm=True` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hubert_pretrain.errors import ArtefactError, did_you_mean
from hubert_pretrain.interop.fairseq_dictionary import check_symbols
from hubert_pretrain.interop.tensor_names import TRANSFORMERS, TRANSFORMERS_CTC, left_over, to_ours
from hubert_pretrain.model.checkpoint import LoadedModel, load_tensors, read_small_json
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.language_adapters import (
    TARGET_LANG,
    Language,
    adapters_of,
    language_file,
    languages,
    name_of,
    read_language,
    read_metadata,
    save_language,
    with_language,
)

THEIR_HEAD = "lm_head."
THEIR_PREFIXES = ("wav2vec2.", "hubert.")
"""Before the names of adapters in the files of `transformers`."""


def choose_language(loaded: LoadedModel, name: str, path: Path) -> LoadedModel:
    """A checkpoint in one of its languages; its network takes the adapters in place.

    Args:
        loaded: the checkpoint in the language that it was read in.
        path: of the checkpoint, for messages.

    Raises ArtefactError for a language that it has not, with those that it has.
    """
    now = loaded.extra.get(TARGET_LANG)
    if loaded.languages is None:
        if now == name:
            return loaded
        holds = f"holds the language {now!r} alone" if now else "has no languages"
        raise ArtefactError(
            f"{path}: target_lang={name}, but the checkpoint {holds} (no "
            "adapter.*.safetensors beside its weights); leave target_lang out"
        )
    file = language_file(loaded.languages, name)
    if not file.is_file():
        known = languages(loaded.languages)
        raise ArtefactError(
            f"{file}: no such language{did_you_mean(name, known)}; set target_lang to one of "
            f"{', '.join(known)}"
        )
    return with_language(loaded, language_at(file, loaded), file)


def language_at(file: Path, loaded: LoadedModel) -> Language:
    """The language of a file of either kind; `loaded` is a network that it shall fit."""
    tensors = load_tensors(file)
    if any(name.startswith(THEIR_HEAD) for name in tensors):
        return _theirs(file, tensors, loaded)
    return read_language(file)


def copy_languages(loaded: LoadedModel, folder: Path, *, but: str) -> None:
    """Writes the other languages of a checkpoint into a folder, for a network with the same weights
    but its adapters.
    """
    for name in languages(loaded.languages) if loaded.languages is not None else ():
        if name != but:
            assert loaded.languages is not None
            save_language(folder, language_at(language_file(loaded.languages, name), loaded))


def _theirs(file: Path, tensors: dict[str, Tensor], loaded: LoadedModel) -> Language:
    """A language of `transformers`: of one of our exports, or trained there."""
    head = {name: each for name, each in tensors.items() if name.startswith(THEIR_HEAD)}
    encoder = {}
    for name, tensor in tensors.items():
        prefix = next((each for each in THEIR_PREFIXES if name.startswith(each)), "")
        if name not in head:
            encoder[name.removeprefix(prefix)] = tensor
    names = list(adapters_of(loaded.model))
    if unknown := left_over(encoder, names, TRANSFORMERS):
        raise ArtefactError(
            f"{file}: {len(unknown)} tensors have no place in this network, first {unknown[0]}; "
            "the language is of another one"
        )
    head_state = to_ours(head, ("linear.weight", "linear.bias"), TRANSFORMERS_CTC, str(file))
    name = name_of(file)
    stored = read_metadata(file)
    if stored is None:
        rows, width = head_state["linear.weight"].shape
        symbols = _symbols(file.with_name("vocab.json"), name, rows)
        stored = {
            "head": {"hidden_size": width, "vocabulary_size": rows},
            "extra": {CTCHead.names: symbols},
        }
    adapters = to_ours(encoder, names, TRANSFORMERS, str(file))
    return Language(name, adapters, head_state=head_state, **stored)


def _symbols(path: Path, name: str, rows: int) -> list[str]:
    """The symbols of a language, by row."""
    stored = read_small_json(path)
    numbers: Any = stored.get(name) if isinstance(stored, dict) else None
    if not isinstance(numbers, dict):
        raise ArtefactError(
            f"{path}: has no vocabulary of {name!r}; expected {{{name!r}: {{symbol: row}}}}, as "
            "transformers writes it"
        )
    return check_symbols(sorted(numbers, key=numbers.__getitem__), rows, path)
