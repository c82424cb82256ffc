"""Checks of a prepared corpus: its tables, the match between them, and the audio. S samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.audio_files import describe, is_loss
from hubert_pretrain.data.augment import open_noise
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import DUPLICATES, Corpus
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import DataError, HubertPretrainError
from hubert_pretrain.formats.utterance_clusters import training_utterances
from hubert_pretrain.frames import SAMPLE_RATE, FrameGrid, samples, seconds
from hubert_pretrain.preflight.report import CheckResult, error, of_error, ok, skipped, warning
from hubert_pretrain.progress import progress
from hubert_pretrain.seeds import permute

MUCH_LEFT_OUT = 0.2
"""A larger share of the utterances that pretraining cannot use is a warning."""
LITTLE_USED = 0.5
"""Use of a smaller share of the audio by an epoch is a warning."""
_ROWS_LOOKED_AT = 5000
"""Alignments that are read, evenly spaced, when there are more."""
_FILES_LOOKED_AT = 200
_FILES_READ = 5
_VARIANCE_TOLERANCE = 0.01
_ROWS_AT_ONCE = 1 << 22
_SAMPLES_AT_ONCE = 300 * SAMPLE_RATE
"""Audio that each thread holds: a recording of hours is read in parts."""


def check(
    corpus: Corpus | None,
    *,
    grid: FrameGrid,
    sample: int,
    everything: bool,
    seed: int,
    workers: int,
) -> list[CheckResult]:
    """All checks of a corpus; skipped before it is prepared. A damaged table is an error among the
    results.
    """
    checks: dict[str, Callable[[Corpus], CheckResult]] = {
        "utterances": partial(utterances, every_id=everything),
        "sample rate": rates,
        "alignments": alignments,
        "audio": lambda corpus: audio(
            corpus,
            choose(corpus, sample=sample, everything=everything, seed=seed),
            workers or usable_cores(),
        ),
        "frames": partial(frames, grid=grid),
    }
    if corpus is None:
        return [skipped(name, "prepare") for name in checks]
    results = []
    for name, check in checks.items():
        try:
            results.append(check(corpus))
        except HubertPretrainError as failure:
            results.append(of_error(name, failure))
    return results


def root(place: str | None) -> CheckResult:
    """The corpus lies where the recipe says."""
    if place is None:
        return ok("corpus", "makes its own audio")
    path = Path(place).expanduser()
    if "://" not in place and not path.exists():
        return error("corpus", f"{path}: no such folder", "set data.root to where the corpus lies")
    return ok("corpus", f"{place}")


def moved(corpus: Corpus, places: Mapping[str, str]) -> CheckResult:
    """The corpus lies where the recipe says now. `places`: folder -> the folder in its place."""
    manifest = corpus.manifest
    rows = np.unique(np.linspace(0, len(manifest) - 1, _FILES_LOOKED_AT).astype(np.int64)).tolist()
    news = [path for path in map(manifest.audio_path, rows) if "://" not in path]
    missing = [path for path in news if not Path(path).is_file()]
    where = ", ".join(f"{old} -> {new}" for old, new in places.items())
    fix = (
        "copy the corpus whole, or, if it is another one, choose another work_dir or add "
        "redo=prepare"
    )
    if missing:
        found = f"{len(missing)} of {len(news)} files are not there, the first: {missing[0]}"
        return error("corpus", f"the corpus was prepared elsewhere ({where}), and {found}", fix)
    for row in rows[:: max(1, len(rows) // _FILES_READ)]:
        if fault := audio_fault(corpus, row):
            found = f"the corpus was prepared elsewhere ({where}), and is another: {fault}"
            return error("corpus", found, fix)
    return ok("corpus", f"moved: {where}")


def utterances(corpus: Corpus, *, every_id: bool = False) -> CheckResult:
    """Splits and ids, duplicates across splits and quarantined files. `every_id`: all ids are
    compared.
    """
    manifest = corpus.manifest
    card = corpus.card
    counts = {split: len(manifest.split_range(split)) for split in manifest.splits}
    found = f"{len(manifest)} in {', '.join(f'{split} {count}' for split, count in counts.items())}"
    if every_id and (distinct := len(manifest.column("id").unique())) != len(manifest):
        return error(
            "utterances",
            f"{found}; only {distinct} different ids",
            "redo=prepare, it refuses duplicates",
        )
    for split in ("train", "valid"):
        if not counts.get(split):
            fix = "give the corpus such a split"
            if split == "valid":
                fix += ", or set data.valid_fraction"
            return error("utterances", f"{found}; none in {split!r}", fix)
    unseen = describe(card.get("passed_over", {}))
    across = card.get("duplicates", {}).get("across_splits", 0)
    bad = card.get("quarantined", {}).get("utterances", 0)
    if across:
        return warning(
            "utterances",
            f"{found}; {across} have the same audio in another split",
            f"{corpus.folder / DUPLICATES} lists them; data.duplicates=drop redo=prepare "
            "leaves them out of train",
        )
    found += f"; {bad} more in quarantine" if bad else ""
    if is_loss(card.get("passed_over", {})):
        return warning("utterances", found, "; ".join(unseen))
    return ok("utterances", "; ".join([found, *unseen]))


def rates(corpus: Corpus) -> CheckResult:
    """Sample rates and channels of the files: all are converted to 16 kHz mono, but low rates have
    no high frequencies.
    """
    card = corpus.card
    rates = {int(rate): count for rate, count in card.get("source_rates", {}).items()}
    channels = card.get("channels", {})
    found = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(rates.items()))
    mixed = sum(int(count) for number, count in channels.items() if number != "1")
    found += f"; {mixed} with several channels, one is taken or made" if mixed else "; one channel"
    mixes = card.get("mixes", {})
    if soft := mixes.get("softer", 0) + mixes.get("cancelled", 0):
        found += f"; the mix of {soft} is 5 dB or more below their loudest channel"
        return warning("sample rate", found, "data.channel=loudest redo=prepare takes that one")
    low = [rate for rate in rates if rate < SAMPLE_RATE]
    if low:
        limit = min(low) // 2
        fix = f"nothing above {limit} Hz is in them: leave them out, or do not mix them with others"
        return warning("sample rate", found, fix)
    return ok("sample rate", found)


def alignments(corpus: Corpus) -> CheckResult:
    """The phone alignments belong to these utterances."""
    table = corpus.alignments
    if table is None:
        return ok("alignments", "none: PNMI and purities stay unknown")
    rows = table.rows()
    manifest = corpus.manifest
    found = f"{len(rows)} of {len(manifest)} utterances, {len(table.phones)} phones"
    if len(rows) and not 0 <= int(rows[0]) <= int(rows[-1]) < len(manifest):
        return error(
            "alignments",
            f"{found}; of row {int(rows[-1])}, which the manifest has not",
            "redo=prepare makes it again",
        )
    for row in rows[:: max(1, len(rows) // _ROWS_LOOKED_AT)].tolist():
        end = int(table.intervals(row)[2].max(initial=0))
        if end > int(manifest.num_samples[row]):
            length = int(manifest.num_samples[row])
            what = f"that of {manifest[row].id!r} ends at sample {end}, its audio at {length}"
            return error(
                "alignments",
                f"{found}; {what}",
                "they are of other audio: fix them and add redo=prepare",
            )
    return ok("alignments", found)


def choose(corpus: Corpus, *, sample: int, everything: bool, seed: int) -> NDArray[np.int64]:
    """The rows whose audio is read."""
    size = len(corpus.manifest)
    if everything or sample >= size:
        return np.arange(size, dtype=np.int64)
    return np.sort(permute(np.arange(sample), size, seed, "check"))


def audio(corpus: Corpus, rows: NDArray[np.int64], workers: int) -> CheckResult:
    """Every utterance of `rows` is there, whole, and the one that `prepare` scanned."""
    with (
        progress(len(rows), "reading audio") as advance,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        bad = []
        for reason in pool.map(partial(audio_fault, corpus), rows.tolist()):
            bad += [reason] if reason else []
            advance()
    which = "all" if len(rows) == len(corpus.manifest) else "a sample of"
    found = f"{which} {len(rows)} read: "
    if bad:
        fix = "restore the files, or leave them out with redo=prepare"
        if which != "all":
            fix += "; check.all=true lists all"
        return error("audio", f"{found}{len(bad)} bad, the first: {bad[0]}", fix, tuple(bad))
    return ok("audio", f"{found}whole, and as the manifest says")


def audio_fault(corpus: Corpus, row: int) -> str:
    """The reason that an utterance cannot be trained on, or ""."""
    utterance = corpus.manifest[row]
    try:
        variance = _variance(corpus, row, utterance.num_samples)
    except DataError as failure:
        return str(failure).rpartition("; ")[0]
    except (OSError, RuntimeError, ValueError) as failure:
        return f"{utterance.path}: {type(failure).__name__}: {failure}"
    if not math.isfinite(variance):
        return f"{utterance.path}: NaN or infinity among its samples"
    largest = max(variance, utterance.variance, 1e-8)
    if abs(variance - utterance.variance) > _VARIANCE_TOLERANCE * largest:
        return (
            f"{utterance.path}: other audio of the same length (variance {variance:.3g}, the "
            f"manifest says {utterance.variance:.3g})"
        )
    return ""


def _variance(corpus: Corpus, row: int, num_samples: int) -> float:
    """Variance of an utterance, read a part at a time; NaN when it holds NaN or infinity."""
    total = 0.0
    power = 0.0
    for part in chunks(num_samples, _SAMPLES_AT_ONCE):
        waveform = corpus.read(row, part.start, part.stop - part.start).astype(np.float64)
        total += float(waveform.sum())
        power += float(waveform @ waveform)
    mean = total / num_samples
    return power / num_samples - mean * mean


def micro_batches(
    corpus: Corpus, config: PretrainConfig, grid: FrameGrid, seed: int
) -> BucketSampler:
    """The micro-batches of a pretraining, without masks. Raises DataError when the corpus does not
    fill one."""
    return BucketSampler(
        training_utterances(corpus.manifest, config.utterance_clusters),
        grid=grid,
        seed=seed,
        batch_seconds=config.batch_seconds,
        micro_batch_seconds=config.micro_batch_seconds,
        max_crop_seconds=config.max_crop_seconds,
        min_seconds=config.min_seconds,
        max_shapes=config.max_shapes,
        masked_frames=lambda num_frames: num_frames,
        corpus_weights=config.corpus_weights,
        corpus_temperature=config.corpus_temperature,
    )


def crops(
    corpus: Corpus, name: str, config: PretrainConfig, *, grid: FrameGrid, seed: int
) -> CheckResult:
    """The share of the corpus that a pretraining uses."""
    try:
        sampler = micro_batches(corpus, config, grid, seed)
    except DataError as failure:
        return of_error(name, failure)
    utterances = corpus.manifest.length_sorted("train")
    count = sum(len(part) for part in utterances)
    shortest = np.array([samples(config.min_seconds)])
    short = sum(int(part.shorter_than(shortest)[0]) for part in utterances)
    shapes = f"{len(sampler.shapes)} shape{'s' * (len(sampler.shapes) > 1)}"
    found = (
        f"{shapes}, {sampler.epoch_micro_batches} micro-batches an epoch, which use "
        f"{sampler.used_share:.1%} of the audio; {short} of {count} are too short"
    )
    if short > MUCH_LEFT_OUT * count:
        fix = f"lower iterations.NAME.pretrain.min_seconds={config.min_seconds}"
        return warning(name, found, fix)
    if sampler.used_share < LITTLE_USED:
        fix = (
            "an epoch takes one crop of each recording: cut long ones into segments (data=manifest "
            "with start_seconds and duration_seconds, docs/formats.md), or raise "
            f"iterations.NAME.pretrain.max_crop_seconds={config.max_crop_seconds}"
        )
        return warning(name, found, fix)
    return ok(name, found)


def frames(corpus: Corpus, grid: FrameGrid) -> CheckResult:
    """Frames of the corpus, of its shortest and of its longest utterance."""
    lengths = corpus.manifest.num_samples
    total = 0
    for part in blocks(len(lengths)):
        total += int(np.asarray(grid.num_frames(lengths[part])).sum())  # type: ignore[arg-type]
    row = int(lengths.argmin())
    longest = int(lengths.max())
    least = grid.num_frames(int(lengths[row]))
    most = grid.num_frames(longest)
    found = f"{total} in all, {least} to {most} per utterance, {grid.frames_per_second:g} a second"
    if least < 1:
        what = f"{corpus.manifest[row].id!r} is {seconds(int(lengths[row])):.3f} s long"
        return error(
            "frames",
            f"{found}; {what}",
            f"leave out what is shorter than {grid.window} samples, and add redo=prepare",
        )
    return ok("frames", found)


def blocks(size: int) -> Iterator[slice]:
    """Slices of a long column, so that 200 million rows need little memory."""
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, size, _ROWS_AT_ONCE))


def noise(folders: Iterable[str]) -> CheckResult:
    """The noise folders of augmentations can be read."""
    found = []
    for folder in folders:
        try:
            source = open_noise(folder)
            source.read(0, 0, min(source.num_samples(0), SAMPLE_RATE))
        except HubertPretrainError as failure:
            return of_error("noise", failure)
        found.append(f"{len(source)} recordings in {folder}")
    return ok("noise", "; ".join(found) or "none is added")
