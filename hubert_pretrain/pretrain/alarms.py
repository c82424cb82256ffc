"""Alarm rules for pretraining metrics. Each alarm is told once, with advice."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

DOMINANT_SHARE = 0.3
"""A cluster with a larger share of the frames is no unit but a bin for everything else (silence is
about a fifth of read speech).
"""
COLLAPSED_SHARE = 0.9
"""A cluster with a larger share of the predictions: the network has collapsed."""
WAIT_SHARE = 0.01
"""Share of the time in the loader, waiting for the next micro-batch, that is tolerated."""
WAIT_SHARE_ON_CPU = 0.5
"""The same on a CPU: its cores do the loader's work too, so the time is not wasted. Another voice
for every second crop takes a third of the time of a small network."""
LEAST_FALL = 0.02
"""Nats per log by which the masked loss of a network that learns falls at first."""
VANISHING_SHARE = 0.05
"""A layer whose output falls below this share of its first scale is dying."""
PATIENCE = 3
"""Logs in a row in which a condition must hold where one alone may be chance."""
ADVICE = {
    "collapse": "Lower pretrain.learning_rate or lengthen pretrain.warmup_fraction, and resume "
    "from a checkpoint before the collapse",
    "nothing_learnt": "Check that the targets belong to this audio (stage=check), then the "
    "learning rate",
    "dominant_cluster": "Listen to it (hubert-pretrain inspect-targets); trim silence or cluster "
    "again (redo=NAME/cluster)",
    "loss_scale": "Use trainer.precision=bf16-mixed",
    "vanishing_layer": "Lower the learning rate",
    "slow_loader": "Raise trainer.loader_workers, use data.shards=pcm, or put the audio on a "
    "faster disk",
}
"""Sentences by name of the alarm."""
COLUMN = "health/alarm/"
"""Of a metric for each standing alarm: the logs in a row in which its condition has held."""


class Rule(NamedTuple):
    """An alarm, evaluated on the values of one log."""

    name: str
    holds: bool
    finding: str
    patience: int = PATIENCE
    """Logs in a row in which it must hold."""


class Alarms:
    """Evaluates the alarm rules on each row of logged values."""

    def __init__(self, *, warmup_steps: int) -> None:
        """
        Args:
            warmup_steps: no "collapse" or "nothing learnt" alarm before this step.
        """
        self.warmup_steps = warmup_steps
        self.raised: set[str] = set()
        self.standing: dict[str, int] = {}
        """Alarms whose condition held in the last log, with the logs in a row in which it did."""
        self._in_a_row: Counter[str] = Counter()
        self._first_scales: dict[str, float] = {}
        self._least_loss = float("inf")

    def check(self, step: int, values: dict[str, float], *, on_gpu: bool = True) -> dict[str, str]:
        """Names of the alarms that fire for the first time -> advice."""
        fired = {}
        self.standing = {}
        tolerated_wait = WAIT_SHARE if on_gpu else WAIT_SHARE_ON_CPU
        for rule in self._rules(step, values, tolerated_wait):
            self._in_a_row[rule.name] = self._in_a_row[rule.name] + 1 if rule.holds else 0
            if self._in_a_row[rule.name] >= rule.patience:
                self.standing[rule.name] = self._in_a_row[rule.name]
                if rule.name not in self.raised:
                    self.raised.add(rule.name)
                    fired[rule.name] = f"{rule.finding}. {ADVICE[rule.name]}"
        return fired

    def _rules(self, step: int, values: dict[str, float], tolerated_wait: float) -> list[Rule]:
        warmed_up = step >= self.warmup_steps
        loss = values.get("loss/masked", 0.0)
        is_falling = loss < self._least_loss - LEAST_FALL
        self._least_loss = min(loss, self._least_loss)
        entropy = values.get("health/unigram_entropy", float("inf"))
        predicted_share = _largest(values, "health/largest_share/predictions")
        target_share = _largest(values, "health/largest_share/targets")
        audio_speed = values.get("audio_seconds_per_second", 0.0)
        wait = values.get("health/data_wait", 0.0)
        loss_scale = values.get("loss_scale", float("inf"))
        vanishing = self._vanishing_layer(values)
        return [
            Rule(
                "collapse",
                warmed_up and predicted_share > COLLAPSED_SHARE and target_share < COLLAPSED_SHARE,
                f"{predicted_share:.0%} of the predictions are one cluster: the network has "
                "collapsed",
            ),
            Rule(
                "nothing_learnt",
                warmed_up and loss >= entropy and not is_falling,
                f"the loss on masked frames ({loss:.3f} nats) has stopped falling and is not below "
                f"the unigram entropy of the targets ({entropy:.3f}): the predictions are no "
                "better than the frequencies of the clusters",
            ),
            Rule(
                "dominant_cluster",
                target_share > DOMINANT_SHARE,
                f"{target_share:.0%} of the frames have one cluster as their target: much silence, "
                "or features that do not distinguish frames",
                patience=1,
            ),
            Rule(
                "loss_scale",
                loss_scale < 1.0,
                f"the loss scale of fp16 has fallen to {loss_scale:g}: gradients overflow all the "
                "time",
                patience=1,
            ),
            Rule(
                "vanishing_layer",
                bool(vanishing),
                f"the output of layer {vanishing} has shrunk to below {VANISHING_SHARE:.0%} of its "
                "first scale: the layer is dying",
            ),
            Rule(
                "slow_loader",
                wait > tolerated_wait,
                f"{wait:.0%} of the time the training waits in its loader, for audio that is not "
                f"yet read, cut and augmented. The loader delivers {audio_speed:.0f} seconds of "
                f"audio per second, the device could take {audio_speed / max(1 - wait, 0.01):.0f}",
            ),
        ]

    def _vanishing_layer(self, values: dict[str, float]) -> str:
        """Number of the first layer whose output has nearly vanished; "" for none."""
        for name, scale in values.items():
            if not name.startswith("health/layer_scale/"):
                continue
            first = self._first_scales.setdefault(name, scale)
            if scale < VANISHING_SHARE * first:
                return name.rsplit("/", 1)[1].lstrip("0")
        return ""


def _largest(values: dict[str, float], name: str) -> float:
    """The largest of one value over all codebooks."""
    return max((value for key, value in values.items() if key.startswith(name)), default=0.0)
