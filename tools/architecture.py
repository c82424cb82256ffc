"""Measure the structure of the package, for the table of docs/architecture.md.

    python tools/architecture.py                  # print the table
    python tools/architecture.py --write          # and put it into docs/architecture.md

Files entered are counted by a profiler on a tiny run (recipe smoke on generated tones): a file
counts when one of its functions is called. A training step goes from one call of
`PretrainModule.training_step` to the next, with loading, optimiser and callbacks. An iteration is
the stages cluster, label and pretrain, in the process of the stage. The other rows are read from
the source.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import pkgutil
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "hubert_pretrain"
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN = "<!-- table: python tools/architecture.py --write -->"
END = "<!-- end of table -->"

TEXTBOOK = (
    "data",
    "model",
    "features",
    "clustering",
    "targets",
    "training",
    "pretrain",
    "finetune",
)
"""Rooms that a reader needs to understand HuBERT, beside stages/."""
STEP = ("pretrain/module.py", "training_step")
ITERATION = ("cluster", "label", "pretrain")
MAX_COLUMNS = 100
QUESTION = re.compile(r"(What|Which|How|Where|Whether)\b")


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    options = parser.parse_args(arguments)
    table = "\n".join([*measured_rows(), "", *static_rows(), "", *room_rows()])
    print(table)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


# -- rows read from the source


def static_rows() -> list[str]:
    """Rows that hold for the source as it is; each count has to be 0."""
    rows = ["| rule | breaches |", "|---|---|"]
    rows += [f"| {rule} | {count} |" for rule, count in breaches().items()]
    return rows


def breaches() -> dict[str, int]:
    """Breaches of the rules of form, by rule."""
    from tests import test_architecture as architecture
    from tests.config import test_yaml_files as yaml_files

    files = sorted(PACKAGE.rglob("*.py"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    questions = [
        text
        for file in files
        for text, _ in architecture.docstrings(file)
        if QUESTION.match(text.lstrip())
    ]
    repeated = [
        key
        for file in yaml_files.FILES
        for key, value in yaml_files.leaves(yaml_files.content(file)[1]).items()
        if yaml_files.inherited(file).get(key, yaml_files.MISSING) == value != yaml_files.MISSING
    ]
    repeated += [key for file in yaml_files.NODES for key in yaml_files.repeated_arguments(file)]
    return {
        "lines over 100 columns": sum(len(line) > MAX_COLUMNS for line in lines),
        "import circles": len(circles(architecture)),
        "docstrings that begin with What, Which, How, Where or Whether": len(questions),
        "values in conf/ that only repeat a default": len(repeated),
    }


def circles(architecture: Any) -> list[Path]:
    """Files that import themselves through others, imports inside functions included."""
    root = PACKAGE / "__init__.py"  # imports its names at their first use
    files = [path for path in architecture.FILES if path != root]
    graph = {
        path: {architecture.MODULES.get(name, root) for name, _ in architecture.imports(path)}
        - {root}
        for path in files
    }

    def reachable(start: Path) -> set[Path]:
        seen: set[Path] = set()
        waiting = set(graph[start])
        while waiting:
            file = waiting.pop()
            seen.add(file)
            waiting |= graph[file] - seen
        return seen

    return [path for path in files if path in reachable(path)]


def room_rows() -> list[str]:
    """Files and lines of each room."""
    rows = ["| room | files | lines |", "|---|---|---|"]
    for name, files in rooms().items():
        lines = sum(len(file.read_text().splitlines()) for file in files)
        rows.append(f"| {name} | {len(files)} | {lines:,} |")
    return rows


def rooms() -> dict[str, list[Path]]:
    """Files with content, by room: the folders, and the files at the top as one room."""
    found: dict[str, list[Path]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.read_text().strip():
            parts = file.relative_to(PACKAGE).parts
            found.setdefault(f"{parts[0]}/" if len(parts) > 1 else "(top)", []).append(file)
    return found


# -- rows measured on a run


@dataclass
class Entered:
    """Files of the package whose functions were called."""

    files: set[str] = field(default_factory=set)
    steps: list[set[str]] = field(default_factory=list)

    def watch(self, frame: FrameType, event: str, argument: object) -> None:
        """Profiler: note the file of each call, and begin a new set at each training step."""
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(PACKAGE)):
            return
        file = name[len(str(PACKAGE)) + 1 :]
        if (file, frame.f_code.co_name) == STEP:
            self.steps.append(set())
        self.files.add(file)
        if self.steps:
            self.steps[-1].add(file)


def measured_rows() -> list[str]:
    """Rows of the training step and of the iteration."""
    with tempfile.TemporaryDirectory() as scratch:
        step, iteration = files_entered(Path(scratch))
    rows = ["| files entered by | HuBERT and its loop | the others | in all |", "|---|---|---|---|"]
    for what, files in (("one training step", step), ("one iteration", iteration)):
        textbook = [file for file in files if is_textbook(file)]
        others = len(files) - len(textbook)
        rows.append(f"| {what} | {len(textbook)} | {others} | {len(files)} |")
    return [*rows, "", *named_files(step)]


def named_files(step: set[str]) -> list[str]:
    """Names of the files of a training step."""
    textbook = sorted(file for file in step if is_textbook(file))
    others = sorted(step - set(textbook))
    return [
        f"Files of a training step: {', '.join(f'`{file}`' for file in textbook)}; and of the "
        f"others {', '.join(f'`{file}`' for file in others)}."
    ]


def is_textbook(file: str) -> bool:
    """True for files of the rooms that explain HuBERT."""
    return file.split("/")[0] in (*TEXTBOOK, "stages") and not file.startswith(
        ("training/resilience/", "stages/runner")
    )


def files_entered(folder: Path) -> tuple[set[str], set[str]]:
    """Files entered by the fourth training step, and by an iteration."""
    # Imports call functions too, once per process: they are no part of a step.
    for module in pkgutil.walk_packages([str(PACKAGE)], "hubert_pretrain."):
        importlib.import_module(module.name)
    write_tones(folder / "audio")
    run_stage(folder, "prepare")
    entered = Entered()
    with profiled(entered.watch):
        for verb in ITERATION:
            run_stage(folder, f"it1/{verb}")
    return entered.steps[3], entered.files


def write_tones(folder: Path) -> None:
    """A corpus of 40 files of tones, three seconds each."""
    import numpy as np
    import soundfile

    folder.mkdir()
    time = np.arange(3 * 16_000) / 16_000
    for number in range(40):
        generator = np.random.default_rng(number)
        frequencies = 300 + 100 * generator.integers(0, 20, 15)
        tones = np.sin(2 * np.pi * np.repeat(frequencies, len(time) // 15) * time)
        noise = generator.normal(size=len(time))
        soundfile.write(folder / f"{number:02}.wav", 0.2 * tones + 0.01 * noise, 16_000)


def run_stage(folder: Path, stage: str) -> None:
    """Run one stage of recipe smoke in this process."""
    from hubert_pretrain import run

    sys.argv = [
        "hubert-pretrain",
        "+recipe=smoke",
        "data=folder",
        f"data.root={folder / 'audio'}",
        f"work_dir={folder / 'run'}",
        "trainer.loader_workers=0",
        f"stage={stage}",
    ]
    try:
        run.main()
    except SystemExit as left:
        if left.code:
            raise


@contextlib.contextmanager
def profiled(watch: Callable[[FrameType, str, object], None]) -> Iterator[None]:
    """Let a profiler see the calls of all threads."""
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
