"""What looks wrong in the values of a pretraining, each said once, with what to do about it."""

from __future__ import annotations

from collections import Counter

UNK_SHARE = 0.3
"""A cluster with more of the frames than this is no unit but a bin for the rest (silence is about a
fifth of read speech).
"""
COLLAPSED_SHARE = 0.9
WAIT_SHARE = 0.01
FADED = 0.05
"""A layer whose output has this share of its first scale."""
PATIENCE = 3
"""Logs in a row that have to agree where one alone may be chance."""


class Alarms:
    """Looks at each row of values."""

    def __init__(self, *, warmup_steps: int) -> None:
        """
        Args:
            warmup_steps: before them a network may know nothing yet.
        """
        self.warmup_steps = warmup_steps
        self.raised: set[str] = set()
        self._agreeing: Counter[str] = Counter()
        self._first: dict[str, float] = {}

    def check(self, step: int, values: dict[str, float]) -> dict[str, str]:
        """Values as they are logged -> {name of an alarm: what is wrong, and what to do}; of each
        only the first.
        """
        new = {}
        for name, (wrong, patience, advice) in self._rules(step, values).items():
            self._agreeing[name] = self._agreeing[name] + 1 if wrong else 0
            if self._agreeing[name] >= patience and name not in self.raised:
                self.raised.add(name)
                new[name] = advice
        return new

    def _rules(self, step: int, values: dict[str, float]) -> dict[str, tuple[bool, int, str]]:
        """name -> (whether it looks so now, how often in a row it must, what to say)."""
        warm = step >= self.warmup_steps
        loss = values.get("loss/masked", 0.0)
        entropy = values.get("health/unigram_entropy", float("inf"))
        predicted = _most(values, "health/largest_share/predictions")
        asked = _most(values, "health/largest_share/targets")
        fed = values.get("audio_seconds_per_second", 0.0)
        wait = values.get("health/data_wait", 0.0)
        scale = values.get("loss_scale", float("inf"))
        faded = self._faded(values)
        return {
            "collapse": (
                warm and predicted > COLLAPSED_SHARE and asked < COLLAPSED_SHARE,
                PATIENCE,
                f"{predicted:.0%} of the predictions are one cluster: the network has collapsed. Lower pretrain.learning_rate or lengthen "
                "pretrain.warmup_fraction, and go back to a checkpoint from before",
            ),
            "nothing_learnt": (
                warm and loss >= entropy,
                PATIENCE,
                f"the loss on hidden frames ({loss:.3f} nats) is not below the unigram entropy of the targets ({entropy:.3f}): guessing by "
                "frequency is as good. Check that targets belong to this audio (stage=check), then the learning rate",
            ),
            "unknown_unit": (
                asked > UNK_SHARE,
                1,
                f"{asked:.0%} of the frames have one cluster as their target: much silence, or features that do not tell frames apart. "
                "Listen to it (hubert-pretrain inspect-targets); trim silence or cluster again",
            ),
            "loss_scale": (
                scale < 1.0,
                1,
                f"the loss scale of fp16 has fallen to {scale:g}: gradients overflow all the time. Use trainer.precision=bf16-mixed",
            ),
            "faded": (
                bool(faded),
                PATIENCE,
                f"the output of layer {faded} has shrunk to below {FADED:.0%} of what it was: the layer is dying. Lower the learning rate",
            ),
            "starved": (
                wait > WAIT_SHARE,
                PATIENCE,
                f"{wait:.0%} of the time is spent waiting for data: the loader feeds {fed:.0f} seconds of audio per second, the device "
                f"could take {fed / max(1 - wait, 0.01):.0f}. Raise trainer.loader_workers, use data.shards=pcm, or put the audio on a "
                "faster disk",
            ),
        }

    def _faded(self, values: dict[str, float]) -> str:
        """The first layer whose output has nearly vanished; "" for none."""
        for name, value in values.items():
            if name.startswith("health/layer_scale/") and value < FADED * self._first.setdefault(
                name, value
            ):
                return name.rsplit("/", 1)[1].lstrip("0")
        return ""


def _most(values: dict[str, float], name: str) -> float:
    """The largest of one value over all codebooks."""
    return max((value for key, value in values.items() if key.startswith(name)), default=0.0)
