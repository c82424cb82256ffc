"""README.md of an export: the model card that the hub of Hugging Face shows. It states what the
network is, how it was made, how good it is, and an example that runs in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hubert_pretrain.files import write_text
from hubert_pretrain.frames import seconds
from hubert_pretrain.interop.transformers_reader import PROBLEM_KEY
from hubert_pretrain.interop.transformers_writer import CTC_CLASSES, EXCHANGES, architecture_of
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.export_limits import offline_note
from hubert_pretrain.model.heads import TASK_HEADS, CTCHead
from hubert_pretrain.model.language_adapters import TARGET_LANG, languages

FILE = "README.md"
LIBRARIES = {
    "huggingface": "transformers",
    "fairseq": "fairseq",
    "s3prl": "s3prl",
    "torchaudio": "torchaudio",
    "onnx": "onnxruntime",
    "torch": "pytorch",
}
"""Format of an export -> the library that loads it, as the hub names it."""
PIPELINES = {
    **dict.fromkeys(CTC_CLASSES, "automatic-speech-recognition"),
    "HubertForSequenceClassification": "audio-classification",
}
"""Class of `transformers` -> the hub's name of the task."""


SHOWN_NAMES = 60
"""Names of outputs in a card, at most."""


@dataclass(frozen=True)
class TaskCard:
    """The part of a card that the task states: finetune/<task>.py."""

    summary: str = ""
    """Completes "HuBERT, ...": "fine-tuned for speech recognition with CTC"."""
    percent: frozenset[str] = frozenset()
    """Scores that people read in per cent."""
    hub_metrics: Mapping[str, str] = field(default_factory=dict)
    """Our name of a score -> the hub's; the others stand in the table only."""


@dataclass(frozen=True)
class Score:
    """A score of an evaluation, with its interval."""

    metric: str
    value: float
    low: float
    high: float
    split: str
    utterances: int


@dataclass(frozen=True)
class Origin:
    """The history of a checkpoint, as a card tells it."""

    name: str
    """Name of the model: recipe and stage, or the file that it was read from."""
    corpus: str = ""
    """Name of the corpus of its run."""
    data: str = ""
    """Sizes of that corpus."""
    lineage: Sequence[str] = ()
    """A line for each stage that led to it, in order."""
    scores: Sequence[Score] = ()
    confidence: float = 0.95
    licence: str = ""
    languages: Sequence[str] = field(default_factory=list)


def write_model_card(
    folder: Path, form: str, file: str, loaded: LoadedModel, made: Origin, task: TaskCard
) -> None:
    """Write the card of an export.

    Args:
        folder: of the export.
        form: name of its format.
        file: name of its file; "" where the folder itself is loaded.
        task: of a fine-tuned checkpoint.
    """
    parts = [
        f"# {made.name}\n\n{_summary(loaded, task)}",
        f"## Use\n\nIn this folder, with `speech.wav` (16 kHz, mono):\n\n"
        f"```python\n{_example(form, file, loaded)}\n```",
        _table_of_scores(made, task),
        f"## Data\n\n{made.data}" if made.data else "",
        "## How it was made\n\n" + "\n".join(f"{n}. {line}" for n, line in _numbered(made))
        if made.lineage
        else "",
        f"## Licence\n\n{made.licence or 'Not stated (`export.licence`).'}",
    ]
    body = "\n\n".join(part for part in parts if part)
    write_text(folder / FILE, f"---\n{_front_matter(form, loaded, made, task)}---\n\n{body}\n")


def _numbered(made: Origin) -> list[tuple[int, str]]:
    return list(enumerate(made.lineage, start=1))


def _front_matter(form: str, loaded: LoadedModel, made: Origin, task: TaskCard) -> str:
    """YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    pipeline = PIPELINES.get(architecture_of(loaded), "feature-extraction")
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=made.corpus.lower().replace(" ", "-") or "unknown",
            dataset_name=made.corpus or "unknown",
            dataset_split=score.split,
            metric_type=task.hub_metrics[score.metric],
            metric_name=score.metric,
            metric_value=round(score.value, 4),
        )
        for score in made.scores
        if score.metric in task.hub_metrics
    ]
    about = ModelCardData(
        language=list(made.languages) or None,
        license=made.licence or None,
        library_name=LIBRARIES[form],
        tags=["hubert", "speech", "hubert_pretrain"],
        pipeline_tag=pipeline,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=made.name if results else None,
        eval_results=results or None,
    )
    return f"{about.to_yaml()}\n"


def _summary(loaded: LoadedModel, task: TaskCard) -> str:
    config = loaded.model.config
    head = TASK_HEADS.get(loaded.kind)
    size = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    summary = "pretrained by masked prediction of units, without labels"
    if head is not None:
        summary = task.summary or f"fine-tuned, with a head of the kind `{loaded.kind}`"
    normalised = "normalised to mean 0 and variance 1" if config.normalize_waveform else "as it is"
    lines = [
        f"HuBERT, {summary}. {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{size:.1f} M parameters; a frame every {1000 * seconds(config.grid.hop):g} ms of speech "
        f"at 16 kHz, which it takes {normalised}.",
    ]
    if names := loaded.extra.get(head.names) if head is not None else None:
        shown = " ".join(f"`{name}`" for name in names[:SHOWN_NAMES])
        more = len(names) - SHOWN_NAMES
        lines.append(f"Outputs: {shown}" + (f" and {more} more" if more > 0 else "") + ".")
    if _exchanges(loaded):
        assert loaded.languages is not None
        known = " ".join(f"`{name}`" for name in languages(loaded.languages))
        lines.append(
            f"Languages: {known}. The outputs above are those of `{loaded.extra[TARGET_LANG]}`. "
            "The class of `transformers` is Wav2Vec2ForCTC, which computes the same network and "
            "can exchange languages."
        )
    if config.chunk_frames is not None:
        lines.append(f"Streaming: {offline_note(config)}.")
    return "\n\n".join(lines)


def _exchanges(loaded: LoadedModel) -> bool:
    return architecture_of(loaded) == EXCHANGES


def _table_of_scores(made: Origin, task: TaskCard) -> str:
    if not made.scores:
        return ""
    rows = [
        f"| {score.split} | {score.metric} | {_shown(score, score.value, task)} "
        f"| {_shown(score, score.low, task)} to {_shown(score, score.high, task)} "
        f"| {score.utterances:,} |"
        for score in made.scores
    ]
    head = (
        f"| split | score | value | {100 * made.confidence:g} % interval | utterances |\n"
        "|---|---|---|---|---|"
    )
    return "\n".join(["## Scores", "", head, *rows])


def _shown(score: Score, value: float, task: TaskCard) -> str:
    return f"{100 * value:.2f} %" if score.metric in task.percent else f"{value:.4g}"


# -- examples

READ = 'waveform, rate = soundfile.read("speech.wav", dtype="float32")'


def _example(form: str, file: str, loaded: LoadedModel) -> str:
    """Code that runs in the folder of the export."""
    if form == "huggingface":
        return _transformers_example(loaded)
    if form == "onnx":
        return "\n".join(
            [
                "import onnxruntime",
                "import soundfile",
                "",
                READ,
                f'session = onnxruntime.InferenceSession("{file}")',
                'outputs = session.run(None, {"waveform": waveform[None]})  # (1, S) in',
                "print(outputs[-1].shape)",
            ]
        )
    if form == "torch":
        return "\n".join(
            [
                "import soundfile",
                "import torch",
                "",
                READ,
                f'network = torch.export.load("{file}").module()',
                "outputs = network(torch.from_numpy(waveform)[None])  # (1, S) in",
                "print(outputs[-1].shape)",
            ]
        )
    return _our_example(file, loaded)


def _our_example(file: str, loaded: LoadedModel) -> str:
    return "\n".join(
        [
            "import soundfile",
            "import torch",
            "from hubert_pretrain.interop.load import load_checkpoint",
            "",
            READ,
            f'model = load_checkpoint("{file or "."}")',
            f"layer = {loaded.model.config.num_hidden_layers}",
            "features = model.features(torch.from_numpy(waveform), layer=layer, "
            "sampling_rate=rate)",
            "print(features.shape)  # (1, frames, width)",
        ]
    )


def _transformers_example(loaded: LoadedModel) -> str:
    task = PIPELINES.get(architecture_of(loaded))
    if task is None:
        return "\n".join(
            [
                "import soundfile",
                "import torch",
                "from transformers import AutoFeatureExtractor, HubertModel",
                "",
                READ,
                'extractor = AutoFeatureExtractor.from_pretrained(".")  # or the name on the hub',
                'model = HubertModel.from_pretrained(".")',
                'inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt")',
                "with torch.inference_mode():",
                "    features = model(**inputs).last_hidden_state",
                "print(features.shape)  # (1, frames, width)",
            ]
        )
    if architecture_of(loaded) in CTC_CLASSES and not loaded.extra.get(CTCHead.names):
        return _our_example("", loaded)
    if _exchanges(loaded):
        return _languages_example(loaded)
    function = {
        "multi_label_classification": ', function_to_apply="sigmoid"',
        "regression": ', function_to_apply="none"',
    }.get(str(loaded.extra.get(PROBLEM_KEY)), "")
    key = '["text"]' if architecture_of(loaded) in CTC_CLASSES else ""
    return "\n".join(
        [
            "import soundfile",
            "from transformers import pipeline",
            "",
            READ,
            f'model = pipeline("{task}", model=".")  # or the name on the hub',
            f'print(model({{"raw": waveform, "sampling_rate": rate}}{function}){key})',
        ]
    )


def _languages_example(loaded: LoadedModel) -> str:
    name = loaded.extra[TARGET_LANG]
    return "\n".join(
        [
            "import soundfile",
            "import torch",
            "from transformers import AutoProcessor, Wav2Vec2ForCTC",
            "",
            READ,
            'processor = AutoProcessor.from_pretrained(".")  # or the name on the hub',
            'model = Wav2Vec2ForCTC.from_pretrained(".")',
            f'processor.tokenizer.set_target_lang("{name}")',
            f'model.load_adapter("{name}")',
            'inputs = processor(waveform, sampling_rate=rate, return_tensors="pt")',
            "with torch.inference_mode():",
            "    logits = model(**inputs).logits",
            "print(processor.decode(logits[0].argmax(dim=-1)))",
        ]
    )
