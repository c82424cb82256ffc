"""Times of phones from speech and its transcripts, without a trained model.

    hubert-pretrain align-phones corpus.csv alignments
    hubert-pretrain align-phones runs/demo alignments --voice gmw/de --format textgrid

espeak-ng (pip install espeakng-loader) gives the phones of each transcript in the language of
--voice. Each phone is a hidden Markov model of three states with Gaussians on MFCC, normalised for
each speaker. The models know nothing at first; they learn from the most likely times in turn with
these, from the shorter utterances, then from all. Half an hour of clean speech is enough.

IN is the folder of a run or of its prepare stage, a manifest with transcripts, an audio file with
its transcript beside it in a file of the same name that ends in .txt, or a folder of those. OUT is
a folder: alignments.ctm, or with --format textgrid a TextGrid for each utterance. A corpus takes
it as `data.alignments=OUT`. Utterances lie in OUT/scores.tsv with the log-likelihood of a frame,
the worst first: a transcript that does not belong to its audio is among them. An utterance without
transcript, or one that is too short for it, is reported and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import DataError
from hubert_pretrain.tools.command import command_parser, report, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from hubert_pretrain.data.source import SourceUtterance
    from hubert_pretrain.decoding.phone_models import Positions
    from hubert_pretrain.features.mfcc import Mfcc

HOP_SECONDS = 0.01
WINDOW_SECONDS = 0.025
EDGE_SECONDS = (WINDOW_SECONDS - HOP_SECONDS) / 2
"""Time of the edge before the first frame, whose middle is that of its window."""
SHORTER_SHARE = 0.35
"""Part of the utterances, the shorter ones, that the first rounds learn from."""
FIRST_ROUNDS = 6
ROUNDS = 3
"""With each number of Gaussians."""
GAUSSIANS = (1, 2, 4, 8)

Segments = list[tuple[str, float, float]]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="IN", help="run, manifest, audio file, or folder of them")
    parser.add_argument("target", metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--voice", default="gmw/en-US", help="of espeak-ng (default: gmw/en-US)")
    parser.add_argument(
        "--split", action="append", default=[], help="only this split; may be given several times"
    )
    parser.add_argument("--format", choices=["ctm", "textgrid"], default="ctm")
    return run_command(align_phones, parser.parse_args(arguments))


def align_phones(options: argparse.Namespace) -> int:
    """Align all utterances; returns the highest exit code of one."""
    from hubert_pretrain.tools.align import chosen

    from hubert_pretrain.corpora.speech_synthesis.pronunciation import pronounce
    from hubert_pretrain.decoding.phone_models import Positions
    from hubert_pretrain.features.mfcc import Mfcc
    from hubert_pretrain.files import refuse_other_content

    source = Path(options.source).expanduser().absolute()
    target = Path(options.target).expanduser().absolute()
    refuse_other_content(target, ())
    speech = list(chosen(source, options.split))
    words = pronounce([each.text for each in speech], options.voice)
    names = sorted({phone for text in words for word in text for phone in word})
    numbers = {name: number for number, name in enumerate(names)}
    extractor = Mfcc(hop_seconds=HOP_SECONDS, window_seconds=WINDOW_SECONDS)
    codes = [0]
    usable: list[SourceUtterance] = []
    utterances: list[Positions] = []
    frames: list[Tensor] = []
    for each, text in zip(speech, words, strict=True):
        positions = Positions.of([[numbers[phone] for phone in word] for word in text])
        try:
            frames.append(frames_of(each, positions, extractor))
        except DataError as error:
            codes.append(report(error))
            continue
        usable.append(each)
        utterances.append(positions)
    if not usable:
        raise DataError(f"{source}: none of the {len(speech)} utterances could be aligned")
    normalise(usable, frames)
    segments, scores = learnt(frames, utterances, names)
    write(target, usable, segments, scores, options.format)
    print(f"aligned      {len(usable)} of {len(speech)} utterances")
    print(f"units        {sum(map(len, segments))} phones, {len(names)} of them different")
    print(f"wrote        {target}")
    return max(codes)


def frames_of(utterance: SourceUtterance, positions: Positions, extractor: Mfcc) -> Tensor:
    """MFCC with derivatives at 100 Hz, (T, 39).

    Raises DataError for an utterance without phones, or with more states than frames.
    """
    import torch

    from hubert_pretrain.data import audio

    if not len(positions.words):
        raise DataError(f"{utterance.id}: has no words that espeak-ng speaks; leave it out")
    waveform = audio.read_source(utterance)
    frames = extractor.extract_packed([torch.from_numpy(waveform)])
    if len(frames) < positions.fewest_frames:
        raise DataError(
            f"{utterance.id}: its phones need {positions.fewest_frames} frames, the audio has "
            f"{len(frames)}; check that they belong together"
        )
    return frames


def normalise(speech: Sequence[SourceUtterance], frames: list[Tensor]) -> None:
    """Mean 0 and variance 1 for each speaker, in place; an utterance without speaker is its own."""
    import torch

    rows = defaultdict(list)
    for row, each in enumerate(speech):
        rows[each.speaker or each.id].append(row)
    for of_speaker in rows.values():
        together = torch.cat([frames[row] for row in of_speaker])
        mean = together.mean(0)
        deviation = together.std(0).clamp(min=1e-3)
        for row in of_speaker:
            frames[row] = (frames[row] - mean) / deviation


def learnt(
    frames: list[Tensor], utterances: list[Positions], names: list[str]
) -> tuple[list[Segments], list[float]]:
    """The phones of each utterance, in seconds, and its score."""
    from hubert_pretrain.decoding.phone_models import PhoneModels
    from hubert_pretrain.progress import progress

    models = PhoneModels(frames, utterances)
    order = sorted(range(len(frames)), key=lambda row: len(frames[row]))
    shorter = order[: max(1, round(SHORTER_SHARE * len(order)))]
    rounds = [(shorter, GAUSSIANS[0])] * FIRST_ROUNDS
    rounds += [(order, number) for number in GAUSSIANS for _ in range(ROUNDS)]
    with progress(len(rounds), "learning phones") as advance:
        for rows, number in rounds:
            models.learn([frames[row] for row in rows], [utterances[row] for row in rows], number)
            advance()
    paths, scores = models.align(frames, utterances)
    segments = [
        [(names[phone], edge(start), edge(stop)) for phone, start, stop in each.segments(path)]
        for each, path in zip(utterances, paths, strict=True)
    ]
    return segments, scores


def edge(frame: int) -> float:
    """Time [s] at which a frame begins, 0 for the first."""
    return frame * HOP_SECONDS + EDGE_SECONDS if frame else 0.0


def write(
    target: Path,
    speech: Sequence[SourceUtterance],
    segments: list[Segments],
    scores: list[float],
    form: str,
) -> None:
    """Write the alignments, then the scores."""
    from hubert_pretrain.tools.align import CTM, SCORES, path_of, refuse_spaces

    from hubert_pretrain.files import write_text
    from hubert_pretrain.formats import ctm, textgrid

    lines: list[str] = []
    for each, found in zip(speech, segments, strict=True):
        if form == "textgrid":
            textgrid.write(path_of(target, each.id), {"phones": found}, found[-1][2])
        else:
            refuse_spaces(each.id)
            lines += ctm.ctm_lines(each.id, [(*segment, 1.0) for segment in found])
    if form == "ctm":
        write_text(target / CTM, "".join(lines))
    worst = sorted(zip(scores, [each.id for each in speech], strict=True))
    rows = [f"{id}\t{score:.4f}\n" for score, id in worst]
    write_text(target / SCORES, "".join(["id\tscore\n", *rows]))


if __name__ == "__main__":
    sys.exit(main())
