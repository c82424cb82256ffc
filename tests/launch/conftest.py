"""A SLURM made of shell scripts: what was submitted is kept, and the queue is a file that a test
writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

SBATCH = """
number=$(($(cat "$FAKE/next") + 1)); echo $number > "$FAKE/next"
if [ -e "$FAKE/refuse" ]; then
    echo "sbatch: error: Batch job submission failed: $(cat "$FAKE/refuse")" >&2; exit 1
fi
printf '%s\\n' "$@" > "$FAKE/$number.words"
cp "${@: -1}" "$FAKE/$number.sh" 2>/dev/null || true
echo "$number|PENDING|Dependency|0:00|" >> "$FAKE/queue"
case " $* " in *" --parsable "*) echo $number ;; *) echo "Submitted batch job $number" ;; esac
"""
SQUEUE = """
fail() { echo "slurm_load_jobs error: $1" >&2; exit 1; }
if [ -e "$FAKE/down" ]; then fail "Unable to contact slurm controller (connect failure)"; fi
for word in "$@"; do case $word in --jobs=*) ids=${word#--jobs=} ;; esac; done
case "$ids" in
    *,*) ;;
    *) grep -q "^$ids|" "$FAKE/queue" || fail "Invalid job id specified" ;;
esac
for id in ${ids//,/ }; do grep "^$id|" "$FAKE/queue" || true; done
"""
SACCT = """
if [ ! -e "$FAKE/accounts" ]; then echo "Slurm accounting storage is disabled" >&2; exit 1; fi
cat "$FAKE/accounts"
"""


@dataclass(frozen=True)
class FakeSlurm:
    """The folder of the scripts and of what they keep."""

    folder: Path

    def submitted(self) -> dict[str, str]:
        """The batch scripts, by job number."""
        return {
            path.stem: path.read_text()
            for path in sorted(self.folder.glob("*.sh"), key=lambda path: int(path.stem))
        }

    def words(self) -> list[list[str]]:
        """The words of every call of sbatch, in order."""
        return [
            path.read_text().splitlines()
            for path in sorted(self.folder.glob("*.words"), key=lambda path: int(path.stem))
        ]

    def queue(self, *lines: str) -> None:
        """Replaces what squeue says: `job|STATE|reason|elapsed|nodes`."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "fake slurm"
    (folder / "bin").mkdir(parents=True)
    for name, body in {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT}.items():
        script = folder / "bin" / name
        script.write_text(f"#!/bin/bash\n{body}")
        script.chmod(0o755)
    (folder / "next").write_text("0")
    (folder / "queue").write_text("")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return FakeSlurm(folder)
