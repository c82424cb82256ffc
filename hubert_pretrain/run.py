"""Command line, `python -m hubert_pretrain.run +recipe=demo`: compose the configuration, validate
it once, hand it over to the pipeline.

Imports no torch, so that --help, stage=list and a mistyped key take less than a second.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback

import hydra
from omegaconf import DictConfig, OmegaConf

from hubert_pretrain import distributed
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import EXIT_INTERRUPTED, ConfigError, HubertPretrainError
from hubert_pretrain.files import write_text
from hubert_pretrain.launch import jobs, local, slurm
from hubert_pretrain.launch.signals import (
    exit_code_for_scheduler,
    exit_on_signals,
    hide_srun_from_lightning,
    tie_to_first_rank,
)
from hubert_pretrain.pipeline import plan, redo, summary
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace

_exit_codes: list[int] = []


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a stage failed, 2 the command line or the recipe is wrong,
    75 saved and left on a signal, 76 hung, 130 interrupted.
    """
    # Hydra prints its errors and exits, unless it shall raise them: a user gets one line with the
    # nearest valid name.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A waiting thread gives its core away. By default it spins, and a step takes ten times as long
    # where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(compose.help_text())
        return
    hide_srun_from_lightning()
    try:
        sys.argv[1:] = compose.prepare(sys.argv[1:])
        _main()
    except KeyboardInterrupt:
        _exit_codes.append(_report("interrupted; the same command resumes", EXIT_INTERRUPTED))
    except HubertPretrainError as error:
        sys.exit(_report(str(error), error.exit_code))
    except Exception as error:
        message = compose.explain_all(error, sys.argv[1:])
        if message is None:
            # A fault of this program. Printed here, because a traceback keeps the trainer and its
            # process group alive.
            traceback.print_exception(error)
            _exit_codes.append(1)
        else:
            _exit_codes.append(_report(message, 2))
    distributed.leave_group()
    sys.exit(exit_code_for_scheduler(max(_exit_codes, default=0)))


@hydra.main(version_base="1.3", config_path=str(compose.conf_folder()), config_name="config")
def _main(config: DictConfig) -> None:
    try:
        overrides = compose.command_line()
        sys.argv[1:] = overrides  # Lightning starts its other ranks with these words
        _run(config, overrides)
    except HubertPretrainError as error:
        # Reported here: Hydra would print a line of its own before it.
        _exit_codes.append(_report(str(error), error.exit_code))


def _run(config: DictConfig, overrides: list[str]) -> None:
    recipe = compose.to_recipe(config, overrides)
    workspace = Workspace(recipe.work_dir)
    with exit_on_signals(recipe.trainer.signals):
        if recipe.stage == "list":
            summary.print_stages(recipe, workspace, jobs.states_by_stage(workspace))
        elif recipe.stage == "check":
            from hubert_pretrain.preflight import check

            check.run(recipe, workspace)
            _check_teachers(recipe, workspace)
        elif recipe.stage == "plan":
            from hubert_pretrain.preflight import costs

            costs.run(recipe, workspace)
        elif recipe.stage == "report":
            from hubert_pretrain.report import page

            print(f"report: {page.run(recipe, workspace)}")
        elif recipe.stage == "all":
            _run_several(recipe, workspace, plan.stages(recipe), overrides)
        else:
            stages = plan.matching(recipe, recipe.stage)
            if [stage.name for stage in stages] == [recipe.stage]:
                _run_one(recipe, workspace, stages[0], overrides)
            else:
                _run_several(recipe, workspace, stages, overrides)


def _run_several(
    recipe: Recipe, workspace: Workspace, stages: list[Stage], overrides: list[str]
) -> None:
    """Those of some stages that are pending, here or as SLURM jobs. The caller has made the plan,
    which refuses what cannot run before anything is written.
    """
    if distributed.launcher() and recipe.launch.kind == "local":
        raise ConfigError(
            "torchrun and srun start the processes of one stage; add stage=<its name>, "
            "stage=list shows them"
        )
    _say_changes(recipe, workspace)
    _check_teachers(recipe, workspace)
    if recipe.launch.kind == "slurm":
        _check_labels(recipe, workspace)
        slurm.run_pending(recipe, workspace, stages, overrides)
        return
    if redo.is_asked(recipe) and "prepare" not in redo.choose(recipe, workspace).left:
        _check_labels(recipe, workspace)  # before anything is removed
    redo.apply(recipe, workspace)
    _write_recipe(workspace, recipe)
    local.run_pending(
        recipe, workspace, stages, overrides, when_prepared=lambda: _check_labels(recipe, workspace)
    )
    summary.print_results(summary.collect(recipe, workspace))
    if workspace.report_path.is_file():
        print(f"report: {workspace.report_path}")


def _run_one(recipe: Recipe, workspace: Workspace, stage: Stage, overrides: list[str]) -> None:
    """One stage, in this process or as a SLURM job."""
    if recipe.launch.kind == "slurm":
        slurm.run_pending(recipe, workspace, [stage], overrides)
        return
    if redo.is_asked(recipe) and distributed.launcher():
        raise ConfigError(
            f"redo={recipe.redo}: torchrun and srun start several processes, and one must remove "
            "what was made; use launch=slurm, or begin it in one process, end that (it saves), and "
            "go on here without redo"
        )
    tie_to_first_rank()
    from hubert_pretrain.stages.runner import run_stage

    if distributed.rank() == 0:
        redo.apply(recipe, workspace)
    run_stage(recipe, workspace, stage)
    if distributed.rank() == 0:
        _write_recipe(workspace, recipe)
        summary.write(recipe, workspace)
        _write_report(recipe, workspace)
    if stage.verb == "prepare" and recipe.check.labels:
        _check_labels(recipe, workspace)


def _check_teachers(recipe: Recipe, workspace: Workspace) -> None:
    """Ask now whether later iterations can use their teachers, where these come from elsewhere."""
    own = {stage.name for stage in plan.stages(recipe)}
    iterations = [each for each in recipe.iterations.values() if not each.targets]
    teachers = {each.features.get("checkpoint") for each in iterations}
    if teachers - own - {None}:
        from hubert_pretrain.stages.extraction import check_teachers

        check_teachers(recipe, workspace)


def _check_labels(recipe: Recipe, workspace: Workspace) -> None:
    """Ask now whether the tasks at the end of the run can use the corpus, if it is prepared."""
    if recipe.finetune and workspace.is_done("prepare"):
        from hubert_pretrain.preflight import check

        check.check_labels(recipe, workspace)


def _say_changes(recipe: Recipe, workspace: Workspace) -> None:
    """Warn when the corpus is no longer as it was prepared, and is not prepared again now."""
    prepare = [stage for stage in plan.stages(recipe) if stage.name == "prepare"]
    if redo.is_asked(recipe) or [plan.state(stage, workspace) for stage in prepare] != [plan.DONE]:
        return
    from hubert_pretrain.preflight import changes

    if difference := changes.difference(recipe, workspace):
        print(f"warning: {difference}; {changes.FIX}", flush=True)


def _write_report(recipe: Recipe, workspace: Workspace) -> None:
    """Write the page of the run after a stage. The stage is done whatever becomes of the page."""
    if not recipe.report:
        return
    from hubert_pretrain.report import page

    try:
        page.run(recipe, workspace)
    except Exception as error:
        print(f"warning: no report ({type(error).__name__}: {error})", flush=True)


def _write_recipe(workspace: Workspace, recipe: Recipe) -> None:
    """Write the whole configuration beside the results: `+recipe=<this file>` runs it again."""
    config = OmegaConf.masked_copy(
        OmegaConf.structured(recipe),
        [each.name for each in dataclasses.fields(recipe) if each.name not in ("stage", "redo")],
    )
    write_text(workspace.recipe_path, OmegaConf.to_yaml(config))


def _report(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
