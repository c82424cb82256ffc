"""Outputs of a frozen encoder, computed once per utterance and read in each step.

A head that is linear up to its mean over frames only needs the means: some 40 kB per utterance for
all layers of Base. N utterances, L layers, T frames, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hubert_pretrain import distributed
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.finetune.waveforms import read_whole
from hubert_pretrain.model.heads import TaskHead
from hubert_pretrain.model.hubert import Hubert, HubertOutput
from hubert_pretrain.progress import progress
from hubert_pretrain.training.dataloading import loader

BYTES_PER_GB = 1e9
WRITTEN_TOGETHER = 64
"""Utterances between two times that the file is synced to disk."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """The outputs that a head needs of an encoder."""

    num_layers: int
    width: int  # D
    all_layers: bool  # encoder's input and each block; else the last one alone
    final_norm: bool  # and, of pre-norm models, the last block after the norm
    means: bool  # over frames: T = 1

    @staticmethod
    def of(head: TaskHead, model: Hubert) -> Contents:
        """Those that the head reads."""
        return Contents(
            num_layers=model.config.num_hidden_layers,
            width=model.config.hidden_size,
            all_layers=head.weighted_layers,
            final_norm=model.config.do_stable_layer_norm,
            means=head.is_linear_before_the_mean,
        )

    @property
    def layers(self) -> int:
        """L."""
        return 1 + self.num_layers + self.final_norm if self.all_layers else 1

    def pack(self, output: HubertOutput) -> Tensor:
        """The outputs for one utterance as (L, T, D) in fp32."""
        states = [output.last]
        if self.all_layers:
            inner = output.hidden_states or []
            states = [output.encoder_input, *inner, *([output.last] if self.final_norm else [])]
        packed = torch.cat(states).float()
        return packed.mean(1, keepdim=True) if self.means else packed

    def unpack(self, packed: Tensor) -> HubertOutput:
        """The output of the network, from those of B utterances (B, L, T, D)."""
        states = list(packed.unbind(1))
        return HubertOutput(
            last=states[-1],
            feature_penalty=packed.new_zeros(()),
            encoder_input=states[0],
            hidden_states=states[1 : 1 + self.num_layers] if self.all_layers else None,
        )


class FeatureCache:
    """A file with the packed outputs of N utterances, one after another."""

    def __init__(
        self, path: Path, rows: NDArray[np.int64], num_frames: NDArray[np.int64], contents: Contents
    ) -> None:
        """
        Args:
            path: of the file; two small ones are beside it.
            rows: manifest rows, ascending.
            num_frames: of each.
            contents: of each utterance.
        """
        self.path = path
        self.contents = contents
        self._rows = rows
        self._frames = np.ones_like(num_frames) if contents.means else num_frames
        each = contents.layers * contents.width
        self._ends = np.cumsum(self._frames) * each  # in numbers
        self._map: NDArray[np.float32] | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return int(self._ends[-1]) * 4 if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # each process opens the file

    def read(self, row: int) -> NDArray[np.float32]:
        """The outputs (L, T, D) of a row."""
        if self._map is None:
            self._map = np.memmap(self.path, np.float32, "r")
        place = int(np.searchsorted(self._rows, row))
        end = int(self._ends[place])
        frames = int(self._frames[place])
        start = end - frames * self.contents.layers * self.contents.width
        return self._map[start:end].reshape(self.contents.layers, frames, self.contents.width)

    def fill(
        self,
        model: Hubert,
        corpus: Corpus,
        device: torch.device,
        *,
        workers: int,
        seed: str,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute what the file lacks, each utterance alone; ranks share the work.

        Every rank must call it. A killed run goes on with the rest.

        Args:
            model: the encoder, left in the mode that it has.
            corpus: gives the waveforms.
            device: that computes.
            workers: processes that decode audio.
            seed: identity of the encoder and the corpus; another one starts again.
            beat: called after each utterance.
        """
        done_path = self.path.with_suffix(".done")
        if distributed.rank() == 0:
            self._begin(done_path, seed)
        distributed.barrier()
        done = np.fromfile(done_path, np.uint8)
        mine = distributed.share(len(done), distributed.rank(), distributed.world_size())
        missing = [place for place in mine if not done[place]]
        was_training = model.training
        model.to(device).eval()
        waveforms = loader(_Waveforms(corpus, self._rows, model), missing, workers=workers)
        with (
            open(self.path, "r+b") as file,
            open(done_path, "r+b") as marks,
            progress(len(missing), "encoder") as advance,
        ):
            pending: list[int] = []
            for place, waveform in zip(missing, waveforms, strict=True):
                packed = self._compute(model, waveform.to(device))
                offset = int(self._ends[place]) * 4 - packed.nbytes
                os.pwrite(file.fileno(), packed.tobytes(), offset)
                pending.append(place)
                if len(pending) == WRITTEN_TOGETHER:
                    _mark(file, marks, pending)
                advance()
                beat()
            _mark(file, marks, pending)
        model.train(was_training)
        distributed.barrier()

    def remove(self) -> None:
        """Delete the files."""
        self._map = None
        for suffix in (self.path.suffix, ".done", ".json"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)

    def _begin(self, done_path: Path, seed: str) -> None:
        """Keep the files of a killed run that computed the same, else make empty ones."""
        stated = {"seed": seed, "bytes": self.num_bytes, "rows": _digest(self._rows)}
        card = self.path.with_suffix(".json")
        if read_json(card) == stated and self.path.exists() and done_path.exists():
            return
        self.remove()
        with open(self.path, "wb") as file:
            file.truncate(self.num_bytes)
        with open(done_path, "wb") as file:
            file.truncate(len(self._rows))
        write_json(card, stated)

    @torch.no_grad()
    def _compute(self, model: Hubert, waveform: Tensor) -> NDArray[np.float32]:
        with torch.autocast(waveform.device.type, enabled=False):
            output = model(waveform, hidden_states=self.contents.all_layers)
            return self.contents.pack(output).cpu().numpy()


def make_cache(
    folder: Path, corpus: Corpus, rows: NDArray[np.int64], model: Hubert, head: TaskHead, gb: float
) -> FeatureCache | None:
    """The cache for all utterances of a task; None, with a message, where it needs more than `gb`.

    rows: of all splits, in any order.
    """
    rows = np.unique(rows)
    lengths: Any = corpus.manifest.num_samples[rows]
    num_frames: Any = model.grid.num_frames(lengths)
    contents = Contents.of(head, model)
    cache = FeatureCache(folder / "features.cache", rows, num_frames, contents)
    size = cache.num_bytes / BYTES_PER_GB
    what = f"{contents.layers} layers of {len(rows)} utterances"
    if contents.means:
        what += " (means over frames)"
    if size > gb:
        log.warning(
            "the frozen encoder runs in each step: its outputs, %s, take %.1f GB, "
            "feature_cache_gb is %g; raise it, or let it be",
            what,
            size,
            gb,
        )
        return None
    if distributed.rank() == 0:
        print(f"the frozen encoder runs once: {what}, {size:.2f} GB in {cache.path}", flush=True)
    return cache


def fill_cache(
    cache: FeatureCache | None,
    model: Hubert,
    corpus: Corpus,
    workers: int,
    device: torch.device,
    beat: Callable[[], None],
) -> None:
    """`FeatureCache.fill`, where there is one."""
    if cache is not None:
        seed = identity(model, corpus)
        cache.fill(model, corpus, device, workers=workers, seed=seed, beat=beat)


def identity(model: Hubert, corpus: Corpus) -> str:
    """Hash of an encoder's weights and the content of a corpus."""
    digest = hashlib.blake2b(corpus.manifest.content().encode(), digest_size=16)
    digest.update(json.dumps(vars(model.config), sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


class _Waveforms(Dataset[Tensor]):
    """Item ``i``: the waveform (1, S) of a row as the encoder expects it."""

    def __init__(self, corpus: Corpus, rows: NDArray[np.int64], model: Hubert) -> None:
        self.corpus = corpus
        self.rows = rows
        self.normalize = model.config.normalize_waveform

    def __getitem__(self, index: int) -> Tensor:
        waveform = read_whole(self.corpus, int(self.rows[index]), self.normalize)
        return torch.from_numpy(waveform)[None]


def _mark(file: Any, marks: Any, pending: list[int]) -> None:
    """Note utterances as done, once their outputs are on disk."""
    os.fsync(file.fileno())
    for place in pending:
        os.pwrite(marks.fileno(), b"\x01", place)
    os.fsync(marks.fileno())
    pending.clear()


def _digest(rows: NDArray[np.int64]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=16).hexdigest()
