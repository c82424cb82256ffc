"""README.md of an export: the model card that the hub of Hugging Face shows. It states what the
network is, how it was made, how good it is, and an example that runs in its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hubert_pretrain.files import write_text
from hubert_pretrain.frames import seconds
from hubert_pretrain.interop.transformers_reader import PROBLEM_KEY
from hubert_pretrain.interop.transformers_writer import architecture_of
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.export_limits import offline_note

FILE = "README.md"
HUB_METRICS = {"wer": "wer", "cer": "cer", "accuracy": "accuracy", "macro_f1": "f1", "mse": "mse"}
"""Our name of a score -> the hub's; the others stand in the table only."""
SHARES = (
    "wer",
    "cer",
    "empty",
    "accuracy",
    "macro_f1",
    "unweighted_accuracy",
    "sentence_error_rate",
    "eer",
    "frame_accuracy",
    "per",
)
"""Scores that people read in per cent."""
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
    "HubertForCTC": "automatic-speech-recognition",
    "HubertForSequenceClassification": "audio-classification",
}
"""Class of `transformers` -> the hub's name of the task."""


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


def write_model_card(folder: Path, form: str, file: str, loaded: LoadedModel, made: Origin) -> None:
    """Write the card of an export.

    Args:
        folder: of the export.
        form: name of its format.
        file: name of its file; "" where the folder itself is loaded.
    """
    parts = [
        f"# {made.name}\n\n{_summary(loaded)}",
        f"## Use\n\nIn this folder, with `speech.wav` (16 kHz, mono):\n\n"
        f"```python\n{_example(form, file, loaded)}\n```",
        _table_of_scores(made),
        f"## Data\n\n{made.data}" if made.data else "",
        "## How it was made\n\n" + "\n".join(f"{n}. {line}" for n, line in _numbered(made))
        if made.lineage
        else "",
        f"## Licence\n\n{made.licence or 'Not stated (`export.licence`).'}",
    ]
    body = "\n\n".join(part for part in parts if part)
    write_text(folder / FILE, f"---\n{_front_matter(form, loaded, made)}---\n\n{body}\n")


def _numbered(made: Origin) -> list[tuple[int, str]]:
    return list(enumerate(made.lineage, start=1))


def _front_matter(form: str, loaded: LoadedModel, made: Origin) -> str:
    """YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    task = PIPELINES.get(architecture_of(loaded), "feature-extraction")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=made.corpus.lower().replace(" ", "-") or "unknown",
            dataset_name=made.corpus or "unknown",
            dataset_split=score.split,
            metric_type=HUB_METRICS[score.metric],
            metric_name=score.metric,
            metric_value=round(score.value, 4),
        )
        for score in made.scores
        if score.metric in HUB_METRICS
    ]
    about = ModelCardData(
        language=list(made.languages) or None,
        license=made.licence or None,
        library_name=LIBRARIES[form],
        tags=["hubert", "speech", "hubert_pretrain"],
        pipeline_tag=task,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=made.name if results else None,
        eval_results=results or None,
    )
    return f"{about.to_yaml()}\n"


def _summary(loaded: LoadedModel) -> str:
    config = loaded.model.config
    size = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    what = {
        "pretrain": "HuBERT, pretrained by masked prediction of units, without labels",
        "ctc": "HuBERT, fine-tuned for speech recognition with CTC",
        "classify": "HuBERT, fine-tuned to label utterances",
        "frames": "HuBERT, fine-tuned to label frames",
        "verify": "HuBERT, fine-tuned to embed voices: the cosine of two embeddings scores a trial",
    }.get(loaded.kind, f"HuBERT with a head of the kind `{loaded.kind}`")
    normalised = "normalised to mean 0 and variance 1" if config.normalize_waveform else "as it is"
    lines = [
        f"{what}. {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{size:.1f} M parameters; a frame every {1000 * seconds(config.grid.hop):g} ms of speech "
        f"at 16 kHz, which it takes {normalised}.",
    ]
    if loaded.kind == "ctc" and loaded.extra.get("vocabulary"):
        shown = " ".join(f"`{symbol}`" for symbol in loaded.extra["vocabulary"][:60])
        more = len(loaded.extra["vocabulary"]) - 60
        lines.append(f"Symbols: {shown}" + (f" and {more} more" if more > 0 else "") + ".")
    if loaded.extra.get("classes"):
        names = ", ".join(map(str, loaded.extra["classes"][:40]))
        more = len(loaded.extra["classes"]) - 40
        lines.append(f"Outputs: {names}" + (f" and {more} more" if more > 0 else "") + ".")
    if config.chunk_frames is not None:
        lines.append(f"Streaming: {offline_note(config)}.")
    return "\n\n".join(lines)


def _table_of_scores(made: Origin) -> str:
    if not made.scores:
        return ""
    rows = [
        f"| {score.split} | {score.metric} | {_shown(score, score.value)} "
        f"| {_shown(score, score.low)} to {_shown(score, score.high)} | {score.utterances:,} |"
        for score in made.scores
    ]
    head = (
        f"| split | score | value | {100 * made.confidence:g} % interval | utterances |\n"
        "|---|---|---|---|---|"
    )
    return "\n".join(["## Scores", "", head, *rows])


def _shown(score: Score, value: float) -> str:
    return f"{100 * value:.2f} %" if score.metric in SHARES else f"{value:.4g}"


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
    if task == PIPELINES["HubertForCTC"] and not loaded.extra.get("vocabulary"):
        return _our_example("", loaded)
    function = {
        "multi_label_classification": ', function_to_apply="sigmoid"',
        "regression": ', function_to_apply="none"',
    }.get(str(loaded.extra.get(PROBLEM_KEY)), "")
    key = '["text"]' if task == PIPELINES["HubertForCTC"] else ""
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
