"""Folders of `transformers`, out, for 4.57 and 5.x.

| head | class | beside the weights |
|---|---|---|
| of pretraining | HubertModel | the head, under fairseq's names: `pretraining_head.safetensors` |
| CTC | HubertForCTC | tokenizer and processor |
| CTC, several languages | Wav2Vec2ForCTC | the same, and `adapter.<language>.safetensors` |
| classes, numbers of utterances | HubertForSequenceClassification | class names, problem_type |
| any other | HubertModel | the head, under our names: `task_head.safetensors` |

The second to fourth also load in the pipelines "automatic-speech-recognition" and
"audio-classification". A head states its class (`TaskHead.places`).

Wav2Vec2ForCTC computes the same network as HubertForCTC, and it alone exchanges languages:
`load_adapter("deu")`, and `set_target_lang("deu")` of the tokenizer. (HubertForCTC has the argument
target_lang too, but its `load_adapter` is that of peft.)

HubertForSequenceClassification computes the logits of all three values of problem_type, but its
loss is cross-entropy whatever problem_type says: for several labels or numbers compute the loss
outside. The pipeline of 5.x follows problem_type; that of 4.57 always applies a softmax, unless it
is called with function_to_apply="sigmoid" (several labels) or "none" (numbers).

Normalisation: `do_normalize` is what the network was trained with. `transformers` normalises with
(x - mean) / sqrt(variance + 1e-7), training here (as in fairseq) with 1e-5: from the same waveform
the two differ by .05 % at an RMS of .1, and by more for very quiet recordings.

A classifier over all layers of a pre-norm model follows 5.x. 4.57 puts the final norm on its last
layer and computes other logits from the same file; all else is bit-equal in 4.57.1 and 5.23.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.decoding.pieces import bpe_tokenizer
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.assemble import new_mask_embedding
from hubert_pretrain.interop.languages import THEIR_PREFIXES, language_at
from hubert_pretrain.interop.tensor_names import (
    FAIRSEQ_HEAD,
    TRANSFORMERS,
    TRANSFORMERS_CLASSES,
    TRANSFORMERS_CTC,
    to_theirs,
)
from hubert_pretrain.interop.transformers_reader import (
    BLANK_KEY,
    EXTRA_FIELDS,
    EXTRA_KEY,
    PRESERVED_FILE,
    PRETRAINING_HEAD,
    PROBLEM_KEY,
    TASK_HEAD,
    TOKENIZER_FIELDS,
    TOKENIZER_KEY,
)
from hubert_pretrain.model.checkpoint import WEIGHTS, LoadedModel, save_tensors
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.export_limits import faults_of_export
from hubert_pretrain.model.heads import TASK_HEADS, CTCHead, TaskHead
from hubert_pretrain.model.language_adapters import TARGET_LANG, language_file, metadata_of
from hubert_pretrain.model.language_adapters import languages as names_of_languages

BARE = "HubertModel"
"""The class without a head."""
EXCHANGES = "Wav2Vec2ForCTC"
"""The class that exchanges languages."""
CTC_CLASSES = ("HubertForCTC", EXCHANGES)
_HEAD_KEY_MAPS = {
    "HubertForCTC": TRANSFORMERS_CTC,
    EXCHANGES: TRANSFORMERS_CTC,
    "HubertForSequenceClassification": TRANSFORMERS_CLASSES,
}
"""Class with a head -> names of the head's tensors in it."""


def architecture_of(loaded: LoadedModel) -> str:
    """The class of `transformers` that computes a network with its head, as the head states; the
    bare network where there is none.
    """
    name = loaded.build_head().places.get("huggingface", BARE) if loaded.head_state else BARE
    return EXCHANGES if name == "HubertForCTC" and loaded.languages is not None else name


def export_huggingface(folder: str | Path, loaded: LoadedModel) -> None:
    """Writes `config.json`, `model.safetensors` and the files of the processor into `folder`.

    A head of a task must name its outputs in `loaded.extra`, under the key that it states; only a
    CTC model may lack its vocabulary (blank first) and then gets no tokenizer. Raises ArtefactError
    when they do not fit the head, or for a network that `transformers` cannot compute.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_labels(loaded)
    _check_variant(loaded)
    write_json(folder / "config.json", _config(loaded))
    save_tensors(folder / WEIGHTS, _weights(loaded))
    write_json(folder / PRESERVED_FILE, loaded.config)
    vocabulary = _vocabulary(loaded)
    extractor = _feature_extractor(loaded.model.config)
    if vocabulary is not None:
        languages = _write_languages(folder, loaded)
        tokenizer = _make_tokenizer(folder, vocabulary, loaded.extra, languages)
        _write_processor(folder, extractor, tokenizer)
    else:  # Otherwise AutoProcessor looks for a tokenizer.
        extractor.processor_class = type(extractor).__name__
    # preprocessor_config.json: 5.x does not write it for a processor, but 4.x and others read it.
    extractor.save_pretrained(folder)
    if architecture_of(loaded) == BARE and loaded.head_state:
        _write_head(folder, loaded)


def _write_head(folder: Path, loaded: LoadedModel) -> None:
    """Writes a head for which there is no class: one of pretraining under fairseq's names."""
    if isinstance(loaded.build_head(), TaskHead):
        save_tensors(folder / TASK_HEAD, loaded.head_state)
        return
    metadata = {"format": "pt"}
    if "temperature" in loaded.config["head"]:
        metadata["temperature"] = str(loaded.config["head"]["temperature"])
    save_tensors(folder / PRETRAINING_HEAD, to_theirs(loaded.head_state, FAIRSEQ_HEAD), metadata)


@functools.cache
def import_transformers() -> Any:
    """The `transformers` module, also where an installed torchaudio is broken.

    `transformers` imports torchaudio whenever it is installed; a build for another CUDA than
    torch's then breaks HuBERT, which does not need it. Nothing else of the library is changed.
    """
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        import transformers.utils
        import transformers.utils.import_utils

        for module in (transformers.utils, transformers.utils.import_utils):
            module.is_torchaudio_available = lambda: False  # type: ignore[attr-defined]
        sys.modules.pop("torchaudio", None)
    # Loading the models imports torchao where it is installed, and its import makes torch warn
    # about torchao's own code.
    noisy = logging.getLogger("torch.utils._pytree")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        import transformers

        assert transformers.HubertModel is not None  # loads the models now
    finally:
        noisy.setLevel(level)
    return transformers


# -- configuration and weights


def _config(loaded: LoadedModel) -> dict[str, Any]:
    config = loaded.model.config
    extra_fields = loaded.extra.get(EXTRA_KEY, {})
    name = architecture_of(loaded)
    transformers = import_transformers()
    architecture = transformers.Wav2Vec2Config if name == EXCHANGES else transformers.HubertConfig
    # A field of both has the same name and meaning in both. Adapters are a field of Wav2Vec2Config
    # only; HubertModel reads it all the same.
    known = {*architecture().to_dict(), "adapter_attn_dim"}
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name in known}
    fields |= {name: value for name, value in extra_fields.items() if name in EXTRA_FIELDS}
    fields |= {
        "architectures": [name],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        **_HEAD_FIELDS.get(name, _no_fields)(loaded),
    }
    return {**architecture(**fields).to_dict(), "model_type": architecture.model_type}


def _no_fields(loaded: LoadedModel) -> dict[str, Any]:
    return {}


def _ctc_fields(loaded: LoadedModel) -> dict[str, Any]:
    """The fields of HubertForCTC."""
    head = loaded.config["head"]
    vocabulary = _vocabulary(loaded) or []
    return {
        "vocab_size": head["vocabulary_size"],
        "final_dropout": head["dropout"],
        "pad_token_id": loaded.extra.get(BLANK_KEY, 0),
        **{
            f"{name}_token_id": vocabulary.index(token)
            for name, token in _SENTENCE_TOKENS.items()
            if token in vocabulary
        },
    }


def _class_fields(loaded: LoadedModel) -> dict[str, Any]:
    """The fields of HubertForSequenceClassification."""
    head = loaded.config["head"]
    classes = [str(name) for name in loaded.extra["classes"]]
    return {
        "use_weighted_layer_sum": head["weighted_layers"],
        "classifier_proj_size": head["projection_size"],
        "id2label": dict(enumerate(classes)),
        "label2id": {name: index for index, name in enumerate(classes)},
        "problem_type": loaded.extra.get(PROBLEM_KEY),
    }


_HEAD_FIELDS = {
    **dict.fromkeys(CTC_CLASSES, _ctc_fields),
    "HubertForSequenceClassification": _class_fields,
}
"""Class with a head -> the fields of its configuration that describe the head."""


def _weights(loaded: LoadedModel) -> dict[str, Tensor]:
    encoder = to_theirs(loaded.model.state_dict(), TRANSFORMERS)
    fields = loaded.extra.get(EXTRA_KEY, {})
    without_masks = fields.get("mask_time_prob") == fields.get("mask_feature_prob") == 0
    mask_embedding = encoder["masked_spec_embed"]
    if without_masks and torch.equal(mask_embedding, new_mask_embedding(len(mask_embedding))):
        # The file that it was read from had none, and `transformers` builds none without masks.
        del encoder["masked_spec_embed"]
    name = architecture_of(loaded)
    if name == BARE:
        return encoder
    head = to_theirs(loaded.head_state, _HEAD_KEY_MAPS[name])
    prefix = THEIR_PREFIXES[0] if name == EXCHANGES else "hubert."
    return {f"{prefix}{name}": tensor for name, tensor in encoder.items()} | head


def _feature_extractor(config: HubertConfig) -> Any:
    return import_transformers().Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=config.normalize_waveform,
        # A group norm over time includes the padding, with or without a mask; such models were
        # trained without one (wav2vec 2.0 Base too).
        return_attention_mask=config.feat_extract_norm == "layer",
    )


# -- CTC vocabulary

_SENTENCE_TOKENS = {"bos": "<s>", "eos": "</s>"}


def _vocabulary(loaded: LoadedModel) -> list[str] | None:
    """The symbols of the CTC head; None for a model of another class or one that names none."""
    is_ctc = architecture_of(loaded) in CTC_CLASSES
    symbols = loaded.extra.get(CTCHead.names) if is_ctc else None
    return None if symbols is None else [str(symbol) for symbol in symbols]


def _write_processor(folder: Path, extractor: Any, tokenizer: Any) -> None:
    """Writes the files of a processor: those of its tokenizer, and its own configuration."""
    processor = import_transformers().Wav2Vec2Processor(
        feature_extractor=extractor, tokenizer=tokenizer
    )
    processor.save_pretrained(folder)


def _write_languages(folder: Path, loaded: LoadedModel) -> dict[str, list[str]]:
    """Writes the file of every language that the checkpoint can take; returns their symbols. Writes
    none, and returns {}, for a model of one language.
    """
    if architecture_of(loaded) != EXCHANGES:
        return {}
    assert loaded.languages is not None
    found = {}
    for name in names_of_languages(loaded.languages):
        language = language_at(language_file(loaded.languages, name), loaded)
        if language.extra.get("merges") or language.extra.get("phones"):
            raise ArtefactError(
                f"language {name!r} has pieces or phones as symbols, and the tokenizer of "
                "transformers exchanges characters only; export one language, export.target_lang"
            )
        encoder = to_theirs(language.adapters, TRANSFORMERS)
        tensors = {f"{THEIR_PREFIXES[0]}{name}": each for name, each in encoder.items()}
        tensors |= to_theirs(language.head_state, TRANSFORMERS_CTC)
        save_tensors(language_file(folder, name), tensors, metadata_of(language))
        found[name] = [str(symbol) for symbol in language.extra[CTCHead.names]]
    return found


def _make_tokenizer(
    folder: Path,
    vocabulary: list[str],
    extra: dict[str, Any],
    languages: dict[str, list[str]],
) -> Any:
    """The tokenizer of a vocabulary, which decodes as our greedy decoding does: it collapses
    repetitions and drops the padding token, which is CTC's blank. Writes its `vocab.json`, where
    it reads one.

    | symbols | class |
    |---|---|
    | characters | Wav2Vec2CTCTokenizer, which turns "|" into a space |
    | pieces of words, with merges | ParakeetTokenizer, the BPE of `tokenizers` |
    | phones | Wav2Vec2PhonemeCTCTokenizer, with spaces between them |

    languages: symbols of each, for a model that exchanges them; {} for any other.

    Special tokens that the vocabulary lacks are switched off; the tokenizer would otherwise number
    them beyond the rows of the head.
    """
    transformers = import_transformers()
    unknown = "<unk>" if "<unk>" in vocabulary else None
    if extra.get("merges"):
        inner = bpe_tokenizer(vocabulary, extra["merges"], str(unknown))
        return transformers.ParakeetTokenizer(
            tokenizer_object=inner, pad_token=vocabulary[0], unk_token=unknown
        )
    sentence_tokens = {
        f"{name}_token": token if token in vocabulary else None
        for name, token in _SENTENCE_TOKENS.items()
    }
    target_lang = {"target_lang": extra[TARGET_LANG]} if languages else {}
    rows = {name: _rows(symbols) for name, symbols in languages.items()}
    write_json(folder / "vocab.json", rows or _rows(vocabulary))
    arguments = {
        **target_lang,
        "vocab_file": str(folder / "vocab.json"),
        "pad_token": vocabulary[0],
        "unk_token": unknown,
        **sentence_tokens,
        "clean_up_tokenization_spaces": False,  # it would turn "DO n't" into "DOn't"
    }
    if extra.get("phones"):
        # It makes phones of texts through a program; here they are given.
        tokenizer = transformers.Wav2Vec2PhonemeCTCTokenizer(**arguments, do_phonemize=False)
    else:
        settings = extra.get(TOKENIZER_KEY, {})
        tokenizer = transformers.Wav2Vec2CTCTokenizer(
            **arguments,
            word_delimiter_token="|" if "|" in vocabulary else None,
            **{name: value for name, value in settings.items() if name in TOKENIZER_FIELDS},
        )
    if len(tokenizer) != len(vocabulary):
        beyond = sorted(set(tokenizer.get_vocab()) - set(vocabulary))
        raise ArtefactError(
            f"{folder}: the tokenizer has symbols that the head does not have "
            f"({', '.join(beyond)}); the export would decode wrongly"
        )
    return tokenizer


def _rows(symbols: list[str]) -> dict[str, int]:
    return {symbol: row for row, symbol in enumerate(symbols)}


# -- checks


def _check_labels(loaded: LoadedModel) -> None:
    form = TASK_HEADS.get(loaded.kind)
    if form is None or not form.names:
        return
    labels = loaded.extra.get(form.names)
    if labels is None and form.names_optional:
        return
    rows = loaded.build_head().n_outputs if loaded.head_state else 0
    if not isinstance(labels, list) or len(labels) != rows or len(set(map(str, labels))) != rows:
        found = f"{len(labels)} names" if isinstance(labels, list) else "none"
        raise ArtefactError(
            f"a {loaded.kind!r} checkpoint must list one distinct name per row of its head in "
            f'extra["{form.names}"]: {rows} rows, {found}'
        )


def _check_variant(loaded: LoadedModel) -> None:
    config = loaded.model.config
    known = import_transformers().activations.ACT2FN
    for name in ("hidden_act", "feat_extract_activation"):
        if getattr(config, name) not in known:
            version = import_transformers().__version__
            raise ArtefactError(
                f"transformers {version} has no {name} {getattr(config, name)!r}; "
                "a model with it cannot be exported to it"
            )
    if faults := faults_of_export("huggingface", config):
        raise ArtefactError("; ".join(faults))
    if architecture_of(loaded) == EXCHANGES and (
        config.conv_pos_batch_norm or not config.feat_proj_layer_norm
    ):
        raise ArtefactError(
            f"{EXCHANGES} of transformers, which exchanges languages, has no batch norm in its "
            "positions and always a norm before the projection; export one language, "
            "export.target_lang"
        )
