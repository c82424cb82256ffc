"""`report.html`, and the page that compares runs: one file with data, programs and audio, which
fetches nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.files import write_text
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.report.contents import collect
from hubert_pretrain.report.runs import Run

STATIC = Path(__file__).with_name("static")
PROGRAMS = (
    "vendor/uPlot.iife.min.js",
    "vendor/wavesurfer.min.js",
    "vendor/wavesurfer.spectrogram.min.js",
    "vendor/wavesurfer.regions.min.js",
    "charts.js",
    "units.js",
    "page.js",
)
STYLES = ("vendor/uPlot.min.css", "page.css")


def run(recipe: Recipe, workspace: Workspace) -> Path:
    """Write the page of a run; returns its path."""
    write_text(workspace.report_path, render(collect([Run.of(recipe, workspace)])))
    return workspace.report_path


def render(content: dict[str, Any]) -> str:
    """The page. Text of the run is data, never part of the markup: names may hold any character."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(static("page.html.j2"))
    return template.render(
        title=" / ".join(each["name"] for each in content["runs"]),
        styles=[static(name) for name in STYLES],
        programs=[static(name) for name in PROGRAMS],
        data=as_script(content),
    )


def static(name: str) -> str:
    """Text of a file in `static/`."""
    return (STATIC / name).read_text(encoding="utf-8")


def as_script(content: Any) -> str:
    """JSON that may stand inside a <script> element: no markup can end it. Numbers that JSON does
    not have become null.
    """
    text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False, default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
