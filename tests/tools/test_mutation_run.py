"""The mutations of tests/mutations.yaml still fit the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.tools import mutation_run

MUTATIONS = mutation_run.read_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[each.name for each in MUTATIONS])
def test_a_mutation_fits(mutation: mutation_run.Mutation, repository: Path) -> None:
    assert (repository / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new != mutation.old
    assert all((repository / place).exists() for place in mutation.tests.split())


def test_a_mutation_is_noticed_by_the_tests_it_breaks_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / "value.py").write_text("VALUE = 1\n")
    (tmp_path / "test_value.py").write_text(
        "from value import VALUE\n\ndef test():\n    assert VALUE > 0\n"
    )
    for new, noticed in (("VALUE = 0", True), ("VALUE = 2", False)):
        mutation = mutation_run.Mutation(
            "other value", "value.py", "VALUE = 1", new, "test_value.py"
        )
        assert mutation_run.is_noticed(mutation, tmp_path) is noticed
        assert (tmp_path / "value.py").read_text() == "VALUE = 1\n"
    broken = mutation_run.Mutation(
        "other value", "value.py", "VALUE = 1", "VALUE = 0", "no_such.py"
    )
    with pytest.raises(RuntimeError, match="pytest ended with"):
        mutation_run.is_noticed(broken, tmp_path)
