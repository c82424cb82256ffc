"""Rendering of utterances to 16 kHz WAV files with their phones, each in a process of its own.

`python -m hubert_pretrain.corpora.speech_synthesis.render` reads one JSON job per line and forks
for each. The parent never speaks, so every child starts from the same state, and the same job gives
the same bytes, whatever was spoken before.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.corpora.speech_synthesis import espeak
from hubert_pretrain.corpora.speech_synthesis.espeak import Phone
from hubert_pretrain.errors import DataError, HubertPretrainError
from hubert_pretrain.files import read_json, remove_temporaries, write_bytes, write_text
from hubert_pretrain.frames import SAMPLE_RATE, samples

_WAV_HEADER_BYTES = 44


@dataclass(frozen=True)
class Job:
    """One utterance to speak: everything that its audio depends on."""

    path: str
    """The WAV file; its phones are written beside it, as `.json`."""
    text: str
    voice: str
    words_per_minute: int
    pitch: int
    pitch_range: int
    lead_seconds: float
    """Silence before the speech."""
    tail_seconds: float
    """Silence after it."""

    @property
    def sidecar(self) -> Path:
        """The file of the phones."""
        return Path(self.path).with_suffix(".json")

    def recipe(self) -> dict[str, Any]:
        """The fields without `path`, which changes when the folder of the finished stage is
        renamed.
        """
        return {name: value for name, value in asdict(self).items() if name != "path"}


def render_all(jobs: list[Job], workers: int) -> None:
    """Renders the unfinished jobs in `workers` parallel processes. Raises DataError when one
    fails.
    """
    pending = [job for job in jobs if read_phones(job) is None]
    for folder in {Path(job.path).parent for job in pending}:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
    shares = [pending[first::workers] for first in range(min(workers, len(pending)))]
    if shares:
        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(_render_in_process, shares))


def _render_in_process(jobs: list[Job]) -> None:
    lines = "".join(json.dumps(asdict(job)) + "\n" for job in jobs)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = run(
        [sys.executable, "-m", __name__],
        input=lines,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(reason)


def read_phones(job: Job) -> list[Phone] | None:
    """The phones of a rendered job, or None when it is not rendered completely."""
    written = read_json(job.sidecar)
    if not isinstance(written, dict) or written.get("recipe") != job.recipe():
        return None
    wav = Path(job.path)
    if not wav.is_file() or wav.stat().st_size != _WAV_HEADER_BYTES + 2 * written["num_samples"]:
        return None
    return [Phone(*phone) for phone in written["phones"]]


def render(job: Job) -> None:
    """Speaks one job and writes its WAV file and its phones. Only once per process."""
    speech = espeak.speak(
        job.text,
        voice=job.voice,
        words_per_minute=job.words_per_minute,
        pitch=job.pitch,
        pitch_range=job.pitch_range,
    )
    waveform, phones = at_our_rate(
        speech, lead=samples(job.lead_seconds), tail=samples(job.tail_seconds)
    )
    _write_wav(Path(job.path), waveform)
    sidecar = {"recipe": job.recipe(), "num_samples": len(waveform), "phones": phones}
    write_text(job.sidecar, json.dumps(sidecar, ensure_ascii=False) + "\n", sync=False)


def at_our_rate(
    speech: espeak.Speech, *, lead: int, tail: int
) -> tuple[NDArray[np.int16], list[Phone]]:
    """Resamples to 16 kHz and adds `lead` and `tail` samples of silence.

    Returns:
        The waveform (S,) int16, and phones that cover [0, S) without gaps.
    """
    import soxr

    resampled = soxr.resample(speech.waveform.astype(np.float32), speech.sample_rate, SAMPLE_RATE)
    spoken = np.clip(np.rint(resampled), -32768, 32767).astype(np.int16)
    waveform = np.concatenate([np.zeros(lead, np.int16), spoken, np.zeros(tail, np.int16)])
    starts = [
        (phone.name, lead + round(phone.start * SAMPLE_RATE / speech.sample_rate))
        for phone in speech.phones()
    ]
    starts = [(espeak.SILENCE, 0), *starts, (espeak.SILENCE, lead + len(spoken))]
    return waveform, espeak.segments(starts, len(waveform))


def _write_wav(path: Path, waveform: NDArray[np.int16]) -> None:
    import io
    import wave

    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(waveform.astype("<i2").tobytes())
    # The stage syncs the whole folder when it publishes it.
    write_bytes(path, content.getvalue(), sync=False)


def _render_in_child(job: Job) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            render(job)
            status = 0
        except Exception as error:
            is_ours = isinstance(error, HubertPretrainError)
            message = str(error) if is_ours else f"{job.path}: {error!r}"
            print(message, file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(1)


def main() -> None:
    """Worker process: one JSON job per line of stdin, each in a child process."""
    import soxr  # noqa: F401  (loaded before the fork, once for all children)

    jobs = [Job(**json.loads(line)) for line in sys.stdin]
    parent = os.getppid()
    for job in jobs:
        if os.getppid() != parent:  # the pipeline was killed: its next run does the rest
            raise SystemExit(1)
        _render_in_child(job)


if __name__ == "__main__":
    main()
