"""The training loop: one for every model, encoder, density, objective and task.

All the randomness of a step comes from (seed, step), so a run that was killed and resumed draws what the unbroken
run drew, and with a budget in steps ends with the same weights, bit by bit, on the same machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from posteria.errors import TrainingInterrupted
from posteria.estimator import Estimator
from posteria.models import Model
from posteria.objectives import Objective
from posteria.tasks import Task
from posteria.training.config import Recipe, TrainConfig, build
from posteria.training.interrupt import stop_on_signals
from posteria.training.log import progress_bar
from posteria.training.run import Callback, Run, TrainResult


def train(config: TrainConfig | Mapping[str, Any], out: str | Path | None = None, *, resume: bool = False,
          model: Model | None = None, callbacks: Sequence[Callback] = (), progress: bool = True) -> TrainResult:
    """Build what a configuration names, and train it.

    Args:
        config: a TrainConfig, or its fields.
        out: folder for the log, checkpoints and the trained estimator (``Estimator.load(out)``); None writes nothing.
        resume: go on from the folder's checkpoint where there is one, else start.
        model: a model object (a user's own, say) in place of ``config.model``.
        callbacks: called with every row of the log.
        progress: show a progress bar (on a terminal).

    Raises:
        InputError: a wrong configuration, a folder in use, or a resumed run whose configuration differs.
        CheckpointError: the folder's checkpoint is damaged or foreign.
        TrainingInterrupted: Ctrl-C or SIGTERM; the run can be resumed.
        TrainingError: non-finite losses persist, or the disk is full.

    Examples:
        >>> result = train({"model": "linear_regression", "steps": 3, "batch_size": 4})
        >>> result.history[-1]["step"]
        3.0
    """
    config = config if isinstance(config, TrainConfig) else TrainConfig.of(**config)
    estimator, task, objective = build(config, model)
    return fit(estimator, task, objective, config, out=out, resume=resume, callbacks=callbacks, progress=progress)


def fit(estimator: Estimator, task: Task, objective: Objective, recipe: Recipe, *, out: str | Path | None = None,
        resume: bool = False, callbacks: Sequence[Callback] = (), progress: bool = True) -> TrainResult:
    """Train an estimator in place. See :func:`train` for the other arguments and the errors.

    Args:
        estimator: what to train; it is moved to the recipe's device.
        task: where the datasets come from; where the estimator has one size, they come padded to it.
        objective: the loss.
        recipe: how to optimise.
    """
    run = Run(estimator, task, objective, recipe)
    if out is not None:
        run.settle_in(Path(out), resume)
    with (stop_on_signals() as stop, torch.random.fork_rng(run.random_devices), progress_bar(progress) as bar,
          run.logging(callbacks)):
        while not run.finished:
            run.step()
            run.report(bar)
            if stop and not run.finished:
                run.save_checkpoint()
                raise TrainingInterrupted(run.farewell(stop))
            if run.checkpoint_due:
                run.save_checkpoint()
        return run.finish()
