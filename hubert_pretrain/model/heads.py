"""Output heads: pretraining (cosine or softmax over clusters), and those of downstream tasks.

A head of a task is a `TaskHead`: it states its kind, the name of each output, and where other
projects hold it. A head of your own is one more subclass with `@register`.

Letters: B utterances, T frames, D width, d width of the unit embeddings, K clusters of all
codebooks, V symbols, N layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.feature_masks import spec_augment
from hubert_pretrain.model.half_precision import Linear
from hubert_pretrain.model.hubert import HubertOutput
from hubert_pretrain.model.pooling import make_pooling


class CodebookHead(nn.Module):
    """Logits of each frame over the clusters: cosine of a projection and a unit embedding, divided
    by a temperature (paper, eq. 3).

    One matrix product of normalised vectors; fairseq computes the same from an expanded
    (K + 1, M, d) tensor. Several codebooks have a part of the projection each, in order (fairseq's
    `untie_final_proj`), or share one projection.
    """

    kind: ClassVar[str] = "pretrain"

    def __init__(
        self,
        hidden_size: int,
        projection_size: int,
        n_clusters: int | Sequence[int],
        temperature: float = 0.1,
        *,
        tie_projections: bool = False,
    ) -> None:
        """
        Args:
            hidden_size: D.
            projection_size: d.
            n_clusters: K, or one number per codebook.
            temperature: divisor of the cosines.
            tie_projections: all codebooks share one projection; without effect on one codebook.
        """
        super().__init__()
        self.n_clusters = _sizes(n_clusters)
        self.tie_projections = tie_projections
        self.projection = Linear(
            hidden_size, projection_size * (1 if tie_projections else len(self.n_clusters))
        )
        # Uniform in [0, 1) as in fairseq: all unit embeddings begin in nearly the same direction,
        # so the loss begins at about log K.
        self.unit_embeddings = nn.Parameter(
            torch.empty(sum(self.n_clusters), projection_size).uniform_()
        )
        self.temperature = temperature

    @property
    def places(self) -> Mapping[str, str]:
        """See `TaskHead.places`. torchaudio has cosines with the units of one codebook."""
        places = {"huggingface": "HubertModel", "fairseq": "hubert"}
        if len(self.n_clusters) == 1:
            places["torchaudio"] = "HuBERTPretrainModel"
        return places

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "projection_size": self.unit_embeddings.shape[1],
            "n_clusters": _one_or_several(self.n_clusters),
            "temperature": self.temperature,
            "tie_projections": self.tie_projections,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) logits, always fp32: bf16 would round cosines by .004 and logits by
        .04.
        """
        projected = self.projection(x)
        with torch.autocast(x.device.type, enabled=False):
            units = F.normalize(self.unit_embeddings.float(), dim=-1, eps=1e-8)
            if self.tie_projections or len(self.n_clusters) == 1:
                return self._cosines(projected, units)
            parts = zip(
                projected.chunk(len(self.n_clusters), dim=-1),
                units.split(self.n_clusters),
                strict=True,
            )
            return torch.cat([self._cosines(part, group) for part, group in parts], dim=-1)

    def _cosines(self, projected: Tensor, units: Tensor) -> Tensor:
        """(..., d) and unit vectors (K, d) -> (..., K)."""
        frames = F.normalize(projected.float(), dim=-1, eps=1e-8)
        return frames @ units.T / self.temperature


class SoftmaxHead(nn.Module):
    """Linear classifier over the clusters, without unit embeddings and temperature."""

    kind: ClassVar[str] = "pretrain"
    places: ClassVar[Mapping[str, str]] = {"huggingface": "HubertModel", "fairseq": "hubert"}
    """See `TaskHead.places`."""

    def __init__(self, hidden_size: int, n_clusters: int | Sequence[int]) -> None:
        """
        Args:
            hidden_size: D.
            n_clusters: K, or one number per codebook.
        """
        super().__init__()
        self.n_clusters = _sizes(n_clusters)
        self.projection = nn.Linear(hidden_size, sum(self.n_clusters))

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "n_clusters": _one_or_several(self.n_clusters),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) logits, always fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.projection.weight.float(), self.projection.bias.float())


def pretraining_head(
    hidden_size: int,
    n_clusters: int | Sequence[int],
    projection_size: int | None = None,
    **cosine: Any,
) -> CodebookHead | SoftmaxHead:
    """A CodebookHead, or a SoftmaxHead when there is no `projection_size`.

    cosine: further settings of a CodebookHead.
    """
    if projection_size is None:
        return SoftmaxHead(hidden_size, n_clusters)
    return CodebookHead(hidden_size, projection_size, n_clusters, **cosine)


HEADS: dict[str, Callable[..., Any]] = {CodebookHead.kind: pretraining_head}
"""Kind of checkpoint -> function that builds its head from the head's `settings` (`register`)."""


class TaskHead(nn.Module):
    """Base of the heads of downstream tasks: output of the network -> logits."""

    kind: ClassVar[str]
    """Kind of the checkpoints that hold it."""
    names: ClassVar[str] = ""
    """Key of the checkpoint's "extra" for the list of its outputs' names; "": they have none."""
    names_optional: ClassVar[bool] = False
    """True if an export without those names is of use."""
    layer_weights: nn.Parameter | None

    def __init__(self, n_layers: int = 0, weighted_layers: bool = False) -> None:
        """
        Args:
            n_layers: N, where layers are mixed.
            weighted_layers: see `mixed`.
        """
        super().__init__()
        self.layer_weights = (
            nn.Parameter(torch.full((n_layers + 1,), 1.0 / (n_layers + 1)))
            if weighted_layers
            else None
        )

    @property
    def places(self) -> Mapping[str, str]:
        """Format of export -> the class or part in that project that computes this head.

        A format that is not named has none. huggingface, s3prl and torchaudio then get the head in
        a place of its own, which only this package reads; fairseq refuses it.
        """
        return {}

    @property
    def weighted_layers(self) -> bool:
        """True when it needs every layer: run the network with `hidden_states=True` then."""
        return self.layer_weights is not None

    @property
    def is_linear_before_the_mean(self) -> bool:
        """True when the mean over frames of every layer is all that the logits depend on. A frozen
        encoder's outputs are then kept as one frame per utterance.
        """
        return False

    @property
    def n_outputs(self) -> int:
        """Number of `names`."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        raise NotImplementedError

    def logits(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """Logits of B utterances; `valid` (B, T), True for real frames, None: all are."""
        raise NotImplementedError

    def finish(self) -> None:
        """Bring the weights into the form that is stored and exported; called after training."""

    def mixed(self, output: HubertOutput) -> Tensor:
        """(B, T, D) last layer; or with `weighted_layers` the sum of the encoder's input and the
        output of each layer, weighted by a softmax (SUPERB).
        """
        if self.layer_weights is None:
            return output.last
        if output.hidden_states is None:
            raise ValueError(
                "a weighted layer sum needs every layer: run the network with hidden_states=True"
            )
        states = torch.stack([output.encoder_input, *output.hidden_states])  # (N + 1, B, T, D)
        return torch.einsum("n,nbtd->btd", self.layer_weights.softmax(0), states)

    def _mixture(self) -> dict[str, Any]:
        """The settings of `TaskHead.__init__`; none without a mixture."""
        if self.layer_weights is None:
            return {}
        return {"n_layers": len(self.layer_weights) - 1, "weighted_layers": True}


_Class = TypeVar("_Class", bound=type[TaskHead])
TASK_HEADS: dict[str, type[TaskHead]] = {}
"""Kind of checkpoint -> class of its head."""


def register(head: _Class) -> _Class:
    """Class decorator: checkpoints of this kind can be read once the module is imported.

    Raises ConfigError when another class has this kind.
    """
    other = TASK_HEADS.setdefault(head.kind, head)
    if (other.__module__, other.__qualname__) != (head.__module__, head.__qualname__):
        raise ConfigError(
            f"{head.__module__}.{head.__qualname__}: kind {head.kind!r} belongs to "
            f"{other.__module__}.{other.__qualname__}; choose another kind"
        )
    TASK_HEADS[head.kind] = head
    HEADS[head.kind] = head
    return head


class FrameHead(TaskHead):
    """Logits of each frame: layers (weighted, or the last), dropout, one linear layer."""

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        dropout: float = 0.0,
        n_layers: int = 0,
        weighted_layers: bool = False,
    ) -> None:
        super().__init__(n_layers, weighted_layers)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, vocabulary_size)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def n_outputs(self) -> int:
        """V."""
        return self.linear.out_features

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.linear.in_features,
            "vocabulary_size": self.linear.out_features,
            "dropout": self.dropout.p,
            **self._mixture(),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V) logits."""
        return self.linear(self.dropout(x))

    def logits(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """(B, T, V)."""
        return self(self.mixed(output))


@register
class CTCHead(FrameHead):
    """Logits of each frame over the symbols of a vocabulary, the blank first, for CTC (fairseq's
    HubertEncoder.proj, `transformers`' lm_head).
    """

    kind: ClassVar[str] = "ctc"
    names: ClassVar[str] = "vocabulary"
    names_optional: ClassVar[bool] = True

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        dropout: float = 0.0,
        n_layers: int = 0,
        weighted_layers: bool = False,
        lstm_layers: int = 0,
        lstm_size: int = 1024,
        mask_features: bool = False,
    ) -> None:
        """
        Args:
            hidden_size: D.
            vocabulary_size: V.
            dropout: before the linear layer.
            n_layers: N, where layers are mixed.
            weighted_layers: see `mixed`.
            lstm_layers: bidirectional LSTM layers before the linear one (SUPERB has two), after a
                projection to their size; with dropout of .2 between them.
            lstm_size: width of each direction.
            mask_features: hide parts of the mixture in training, see `spec_augment`.
        """
        width = 2 * lstm_size if lstm_layers else hidden_size
        super().__init__(width, vocabulary_size, dropout, n_layers, weighted_layers)
        self.mask_features = mask_features
        self.lstm: nn.LSTM | None = None
        if lstm_layers:
            self.projection = nn.Linear(hidden_size, lstm_size)
            self.lstm = nn.LSTM(
                lstm_size,
                lstm_size,
                lstm_layers,
                batch_first=True,
                bidirectional=True,
                dropout=0.2 if lstm_layers > 1 else 0.0,
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        masks = {"mask_features": True} if self.mask_features else {}
        if self.lstm is None:
            return {**super().settings, **masks}
        return {
            **super().settings,
            **masks,
            "hidden_size": self.projection.in_features,
            "lstm_layers": self.lstm.num_layers,
            "lstm_size": self.lstm.hidden_size,
        }

    def logits(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """(B, T, V); the LSTM of an utterance does not see its padding."""
        x = self.mixed(output)  # (B, T, D)
        if self.mask_features and self.training:
            x = spec_augment(x, valid)
        if self.lstm is not None:
            x = self.projection(x)
            if valid is None:
                x = self.lstm(x)[0]
            else:
                lengths = valid.sum(1).cpu()
                packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                x = pad_packed_sequence(
                    self.lstm(packed)[0], batch_first=True, total_length=x.shape[1]
                )[0]
        return self(x)

    @property
    def places(self) -> Mapping[str, str]:
        """The classes for CTC, which read the last layer only, without an LSTM."""
        if self.weighted_layers or self.lstm is not None:
            return {}
        return {"huggingface": "HubertForCTC", "fairseq": "hubert_ctc", "torchaudio": "aux"}


@register
class FrameClassificationHead(FrameHead):
    """Logits of each frame over classes such as phones. No other project has a class for it."""

    kind: ClassVar[str] = "frames"
    names: ClassVar[str] = "classes"


@register
class ClassificationHead(TaskHead):
    """Values of utterances, one per class: layers (weighted, or the last), projection, pooling over
    valid frames, classifier.

    With the mean it is the same computation as `transformers.HubertForSequenceClassification` 5.x:
    the weighted sum runs over the input of layer 1 and the output of each layer, for pre-norm
    models without the final norm.
    """

    kind: ClassVar[str] = "classify"
    names: ClassVar[str] = "classes"

    def __init__(
        self,
        hidden_size: int,
        n_classes: int,
        projection_size: int = 256,
        n_layers: int = 0,
        weighted_layers: bool = False,
        pooling: str = "mean",
        units: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """
        Args:
            hidden_size: D.
            n_classes: number of outputs.
            projection_size: width of the frames that are pooled.
            n_layers: N, where layers are mixed.
            weighted_layers: see `mixed`.
            pooling: see model/pooling.py.
            units: see `set_units`.
        """
        super().__init__(n_layers, weighted_layers)
        self.projection = nn.Linear(hidden_size, projection_size)
        self.pooling = make_pooling(pooling, projection_size)
        self.linear = nn.Linear(self.pooling.width, n_classes)
        self.units: Tensor | None
        self.register_buffer("units", None, persistent=False)  # (2, outputs): scale, offset
        if units is not None:
            self.set_units(*units)

    def set_units(self, scale: Sequence[float], offset: Sequence[float]) -> None:
        """Outputs become scale x linear + offset, one number each, until `finish`: numbers of any
        unit then learn at the same rate.
        """
        self.units = torch.tensor([list(scale), list(offset)])

    def finish(self) -> None:
        """Take the units into the linear layer."""
        if self.units is None:
            return
        scale, offset = self.units.to(self.linear.weight)
        with torch.no_grad():
            self.linear.weight.mul_(scale[:, None])
            self.linear.bias.mul_(scale).add_(offset)
        self.units = None

    @property
    def n_outputs(self) -> int:
        """Number of classes."""
        return self.linear.out_features

    @property
    def places(self) -> Mapping[str, str]:
        """The class for classification, which pools by the mean only."""
        if self.pooling.name != "mean":
            return {}
        return {"huggingface": "HubertForSequenceClassification"}

    @property
    def is_linear_before_the_mean(self) -> bool:
        """True for the mean: projection and mixture are linear."""
        return self.pooling.name == "mean"

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "n_classes": self.linear.out_features,
            "projection_size": self.projection.out_features,
            "n_layers": 0 if self.layer_weights is None else len(self.layer_weights) - 1,
            "weighted_layers": self.weighted_layers,
            "pooling": self.pooling.name,
            **({} if self.units is None else {"units": self.units.tolist()}),
        }

    def forward(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """The network's output and real frames (B, T) bool (None: all) -> (B, classes) logits."""
        x = self.projection(self.mixed(output))  # (B, T, projection_size)
        values = self.linear(self.pooling(x, valid))
        if self.units is None:
            return values
        return values.float() * self.units[0] + self.units[1]

    def logits(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """(B, classes)."""
        return self(output, valid)


@register
class SpeakerHead(TaskHead):
    """Embeddings of utterances, and their cosines with the speakers of training: layers (weighted,
    or the last), projection, pooling, embedding.
    """

    kind: ClassVar[str] = "verify"
    names: ClassVar[str] = "speakers"

    def __init__(
        self,
        hidden_size: int,
        n_speakers: int,
        projection_size: int = 256,
        embedding_size: int = 192,
        n_layers: int = 0,
        weighted_layers: bool = False,
        pooling: str = "attentive",
    ) -> None:
        super().__init__(n_layers, weighted_layers)
        self.projection = nn.Linear(hidden_size, projection_size)
        self.pooling = make_pooling(pooling, projection_size)
        self.embedding = nn.Linear(self.pooling.width, embedding_size)
        self.after: nn.Linear | None = None
        if self.pooling.name == "xvector":  # trained behind one more layer than it is used
            self.after = nn.Linear(embedding_size, embedding_size)
        self.speakers = nn.Parameter(torch.empty(n_speakers, embedding_size))
        nn.init.xavier_uniform_(self.speakers)

    @property
    def n_outputs(self) -> int:
        """Speakers of training."""
        return self.speakers.shape[0]

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "n_speakers": self.speakers.shape[0],
            "projection_size": self.projection.out_features,
            "embedding_size": self.embedding.out_features,
            "pooling": self.pooling.name,
            **self._mixture(),
        }

    @property
    def is_linear_before_the_mean(self) -> bool:
        """True for the mean: projection and mixture are linear."""
        return self.pooling.name == "mean"

    def logits(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """(B, E) embeddings of length 1, in fp32: their products are the scores of trials."""
        return F.normalize(self.embed(output, valid), dim=-1)

    def embed(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """(B, E) embeddings of any length, in fp32."""
        pooled = self.pooling(self.projection(self.mixed(output)), valid)
        embeddings = self.embedding(pooled).float()
        return embeddings if self.after is None else embeddings.relu()

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Embeddings of any length (B, E) -> (B, speakers of training)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.after is not None:
                embeddings = self.after(embeddings).relu()
            return F.normalize(embeddings, dim=-1) @ F.normalize(self.speakers.float(), dim=-1).T


Head: TypeAlias = CodebookHead | SoftmaxHead | TaskHead


def _sizes(n_clusters: int | Sequence[int]) -> tuple[int, ...]:
    return (n_clusters,) if isinstance(n_clusters, int) else tuple(n_clusters)


def _one_or_several(sizes: tuple[int, ...]) -> int | list[int]:
    return sizes[0] if len(sizes) == 1 else list(sizes)
