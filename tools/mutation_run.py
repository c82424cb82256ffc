"""Mutation run: makes single wrong changes (tests/mutations.yaml) in a copy of the repository and
counts those that the tests notice.

    python tools/mutation_run.py                    # all of them, a table at the end
    python tools/mutation_run.py --only finetune    # those whose file or name contains the word

A mutation that no test notices is a test that is missing. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
MUTATIONS = REPOSITORY / "tests" / "mutations.yaml"
QUICK = "not slow and not slurm and not long"
NO_TESTS_FAILED = 0
TESTS_FAILED = 1
"""Exit codes of pytest. Any other means that it could not run the tests."""


@dataclass(frozen=True)
class Mutation:
    """A wrong change of a file, and the tests that must notice it."""

    name: str
    file: str
    """Path within the repository."""
    old: str
    """Text that occurs once in the file."""
    new: str
    tests: str
    """Files or folders of tests, separated by spaces."""
    slow: bool = False
    """Slow tests are run too."""

    def apply(self, root: Path) -> None:
        """Make the change in the copy at `root`."""
        path = root / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def read_mutations() -> list[Mutation]:
    """The mutations of tests/mutations.yaml."""
    return [Mutation(**entry) for entry in yaml.safe_load(MUTATIONS.read_text())]


def is_noticed(mutation: Mutation, root: Path) -> bool:
    """True if a quick test fails in the copy at `root`.

    Raises RuntimeError when pytest could not run, which proves nothing.
    """
    original = (root / mutation.file).read_text()
    mutation.apply(root)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    if not mutation.slow:
        command += ["-m", QUICK]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, *mutation.tests.split()],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        (root / mutation.file).write_text(original)
    if done.returncode not in (NO_TESTS_FAILED, TESTS_FAILED):
        raise RuntimeError(f"{mutation.name}: pytest ended with {done.returncode}:\n{done.stdout}")
    return done.returncode == TESTS_FAILED


def main() -> int:
    """Try the mutations, print one line each and a table of the rooms."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="part of a file's path or of a name")
    parser.add_argument("--first", type=int, default=1, help="number of the first one, from 1")
    arguments = parser.parse_args()
    chosen = read_mutations()[arguments.first - 1 :]
    chosen = [each for each in chosen if arguments.only in f"{each.file} {each.name}"]
    tried: Counter[str] = Counter()
    noticed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "__pycache__")
        shutil.copytree(REPOSITORY, root, ignore=ignored)
        for mutation in chosen:
            room = mutation.file.split("/")[1]
            tried[room] += 1
            found = is_noticed(mutation, root)
            noticed[room] += found
            print(
                "noticed " if found else "SURVIVED", f"{mutation.file}: {mutation.name}", flush=True
            )
    print("\n| room | mutations | noticed |\n|---|---|---|")
    for room in tried:
        print(f"| `{room}/` | {tried[room]} | {noticed[room]} |")
    print(f"| all | {tried.total()} | {noticed.total()} |")
    return int(noticed != tried)


if __name__ == "__main__":
    sys.exit(main())
