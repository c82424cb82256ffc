"""Write the page of a run, or its segments of units as a table.

    hubert-pretrain report runs/demo
    hubert-pretrain report runs/demo --export parquet --iteration it2

The page, report.html, is that of `stage=report`. --export parquet writes a row for each run of one
unit: id, unit, start, end, x, y, speaker, phone, path. Viewers of embeddings read it. The features
of the iteration are computed again; (x, y) is the mean of the frames of the segment on the first
two principal components of such means (PCA), so near points sound alike to the network. The path
is that of the recording in the prepared corpus.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.tools.command import command_parser, run_command

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import Recipe
    from hubert_pretrain.pipeline.workspace import Workspace


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run (its work_dir)")
    parser.add_argument("--export", choices=["parquet"], help="write this instead of the page")
    parser.add_argument(
        "--iteration",
        metavar="NAME",
        help="of the units to export (default: the last one labelled)",
    )
    parser.add_argument(
        "--utterances",
        type=int,
        default=2000,
        metavar="N",
        help="utterances to export, evenly spaced; 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="default: report.html or segments.parquet in the run"
    )
    return run_command(report, parser.parse_args(arguments))


def report(options: argparse.Namespace) -> None:
    """Write the page or the table."""
    from hubert_pretrain.files import write_text
    from hubert_pretrain.report import page
    from hubert_pretrain.report.contents import collect
    from hubert_pretrain.report.runs import open_runs

    runs, _ = open_runs([options.run])
    if options.export:
        export_segments(runs[0].recipe, runs[0].workspace, options)
        return
    path = Path(options.output or runs[0].workspace.report_path)
    write_text(path, page.render(collect(runs)))
    print(f"report: {path}")


def export_segments(recipe: Recipe, workspace: Workspace, options: argparse.Namespace) -> None:
    """Write the segments of one iteration."""
    from hubert_pretrain.report.segments import SegmentTable
    from hubert_pretrain.stages.extraction import extraction
    from hubert_pretrain.stages.label import open_targets
    from hubert_pretrain.stages.prepare import open_corpus
    from hubert_pretrain.targets.quality import evenly_spaced

    labelled = [name for name in recipe.iterations if workspace.is_done(f"{name}/label")]
    name = options.iteration or (labelled or list(recipe.iterations) or ["it1"])[-1]
    if name not in recipe.iterations:
        raise ConfigError(
            f"--iteration {name}: no such iteration{did_you_mean(name, list(recipe.iterations))}; "
            f"the recipe has {', '.join(recipe.iterations) or 'none'}"
        )
    store = open_targets(workspace, name)
    corpus = open_corpus(recipe, workspace)
    store.check(corpus.manifest)
    rows = corpus.manifest.rows()
    if options.utterances:
        rows = evenly_spaced(rows, options.utterances)
    layer = store.codebook["features"].get("layer")
    path = Path(options.output or workspace.root / "segments.parquet")
    with extraction(recipe, workspace, name, layer=layer) as at:
        if at.extractor.grid != store.grid:
            raise ConfigError(
                f"{store.folder}: its frames are not those of the features of {name}: {store.grid} "
                f"and {at.extractor.grid}; segments of imported targets cannot be placed"
            )
        table = SegmentTable(corpus, store, at.extractor, at.device, at.workers)
        count = table.write(path, rows)
    print(f"{count} segments of {len(rows)} utterances, units of {name}: {path}")


if __name__ == "__main__":
    sys.exit(main())
