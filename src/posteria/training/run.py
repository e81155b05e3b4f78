"""The state of a training run and its moves: step, report, checkpoint, finish."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posteria.errors import CheckpointError, InputError
from posteria.estimator import Estimator
from posteria.every_model import WIDENINGS, serves_every_model
from posteria.files import remove_leftovers
from posteria.objectives import Objective, Step
from posteria.randomness import generator_for, seed_global_state
from posteria.tasks import Task
from posteria.training.average import WeightAverage
from posteria.training.checkpoint import Checkpoint, explained_disk_errors, load_optimizer, optimizer_tensors
from posteria.training.config import Recipe, TrainConfig
from posteria.training.guard import NonFiniteGuard, Window
from posteria.training.hardware import choose_device, choose_encoder_dtype
from posteria.training.interrupt import StopRequest
from posteria.training.log import Bar, CsvLog, Log, Row, TensorBoardLog
from posteria.training.validation import Validation
from posteria.trust import LEAST_FAMILIAR

CHECKPOINT, LOG = "checkpoint.safetensors", "log.csv"
Callback = Callable[[Row], None]
# Nats per observation: the reverse-KL loss is tame out there, so that no step is skipped and nothing else says so.
_DIVERGED = 1e6
# Without validate_every, a run validates this often over its budget.
_VALIDATIONS = 20
_SECONDS_BETWEEN_BAR_UPDATES = 0.5
# Fields of the recipe in which a resumed run may differ: they do not touch its result.
_MAY_CHANGE = frozenset({"checkpoint_every_seconds", "tensorboard"})
# Training datasets that an estimator remembers, to tell others apart from them: at most so many, and one for so many
# seen, so that they cost little; none where that leaves too few.
_FAMILIAR_DATASETS, _SEEN_PER_FAMILIAR = 128, 8
# Sets the global random state (dropout) apart from the step's own generator.
_GLOBAL_SALT = 0x5DEECE66D


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        estimator: with the averaged weights, in evaluation mode.
        history: the rows of the log: step, elapsed_seconds, loss, gradient_norm, learning_rate, skipped and the
            validation figures.
    """

    estimator: Estimator
    history: list[Row]


class Run:
    """State of one training run, and the moves that :func:`posteria.training.fit` makes with it."""

    def __init__(self, estimator: Estimator, task: Task, objective: Objective, recipe: Recipe):
        self.task, self.objective, self.recipe = task, objective, recipe
        self.record = _record(estimator, recipe)
        self.device = choose_device(recipe.device)
        self.schedule = recipe.schedule
        self.estimator = estimator.to(self.device).train()
        self.encoder_dtype = choose_encoder_dtype(recipe.precision, estimator.encoder, self.device)
        self.weights = [p for p in estimator.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=recipe.learning_rate, betas=recipe.betas,
                                           weight_decay=recipe.weight_decay, fused=True)
        self.average = WeightAverage(estimator, recipe.ema)
        self.guard = NonFiniteGuard(self.device, recipe.patience)
        self.window = Window(self.device)
        self.validation = Validation(task, estimator.model, recipe.seed, self.device)
        self.logs: list[Log] = []
        self.history: list[Row] = []
        self.figures: dict[str, float] = {}
        self.folder: Path | None = None
        self.steps, self.progress_before = 0, 0.0
        self._elapsed_earlier, self._began = 0.0, time.perf_counter()
        self._last_checkpoint = self._last_bar = self._began

    # -- where the run stands -----------------------------------------------------------------
    @property
    def elapsed(self) -> float:
        """Seconds of training, over all sittings."""
        return self._elapsed_earlier + time.perf_counter() - self._began

    @property
    def progress(self) -> float:
        return self.schedule.progress(self.steps, self.elapsed)

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    @property
    def random_devices(self) -> list[torch.device]:
        """Devices, besides the CPU, whose global random state a step sets."""
        return [self.device] if self.device.type == "cuda" else []

    # -- one step -----------------------------------------------------------------------------
    def step(self) -> None:
        """Draw a batch and move the weights, unless the loss or its gradient is not finite."""
        self.progress_before = self.progress
        generator = generator_for(self.recipe.seed, self.steps, self.device)
        seed_global_state(generator.initial_seed() ^ _GLOBAL_SALT, self.device)  # dropout knows no generator
        self.optimizer.zero_grad()
        try:
            loss = self._loss(Step(self.progress_before, generator))
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]  # a matrix that has no factor
            loss = torch.full((), torch.nan, device=self.device)
        self._update(loss)
        self.steps += 1
        if self.steps % self.recipe.patience == 0:
            self.guard.check(self.steps)

    def _loss(self, step: Step) -> Tensor:
        assert step.generator is not None
        task = self.task.pick(step.generator)
        dataset, theta = task.draw(self.recipe.batch_size, step.generator, self.device)
        self.estimator.encoder_dtype = self.encoder_dtype
        estimator = self.estimator if task is self.task else self.estimator.for_model(task.model)
        loss = self.objective(estimator.distribution(dataset), dataset, theta, estimator.model, step)
        loss.backward()
        return loss.detach()

    def _update(self, loss: Tensor) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip or math.inf)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.steps, self.progress_before)
        # The fused optimizer leaves everything as it is where found_inf is one: a skip that waits for no device.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.average.update(self.steps)
        self.guard.count(finite)
        self.window.add(loss, norm, finite)

    # -- figures ------------------------------------------------------------------------------
    @contextmanager
    def logging(self, callbacks: Sequence[Callback]) -> Iterator[None]:
        """Open the logs, from the step that the run is at."""
        self.callbacks = callbacks
        if self.folder is not None:
            csv_log = CsvLog(self.folder / LOG, self.steps)
            self.history = list(csv_log.rows)
            self.logs.append(csv_log)
            if self.recipe.tensorboard:
                self.logs.append(TensorBoardLog(self.folder / "tensorboard", self.steps))
        try:
            yield
        finally:
            for log in self.logs:
                log.close()

    def report(self, bar: Bar) -> None:
        """Validate and log where that is due, and keep the progress bar going."""
        if self._validation_due:
            self._write_row()
        now = time.perf_counter()
        if bar.shown and now - self._last_bar >= _SECONDS_BETWEEN_BAR_UPDATES:
            self._last_bar = now
            bar.update(self.progress, {"loss": self.window.mean_loss} | dict(list(self.figures.items())[:1]))

    @property
    def _validation_due(self) -> bool:
        if self.recipe.validate_every is not None:
            return self.steps % self.recipe.validate_every == 0
        return int(self.progress * _VALIDATIONS) > int(self.progress_before * _VALIDATIONS)

    def _write_row(self) -> None:
        self.guard.check(self.steps)
        self.figures = self._validate()
        row: Row = {"step": float(self.steps), "elapsed_seconds": self.elapsed, **self.window.means(),
                    "learning_rate": self.schedule.rate(self.steps - 1, self.progress_before),
                    "skipped": float(self.guard.skipped), **self.figures}
        self.window.clear()
        self.history.append(row)
        for log in self.logs:
            log.write(row)
        for callback in self.callbacks:
            callback(row)

    def _validate(self) -> dict[str, float]:
        self.estimator.eval().encoder_dtype = None
        with self.average.applied():
            figures = self.validation(self.estimator)
        self.estimator.train()
        return figures

    # -- folder -------------------------------------------------------------------------------
    def settle_in(self, folder: Path, resume: bool) -> None:
        """Take the folder, and go on from its checkpoint if there is one."""
        self.folder = folder
        with explained_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / CHECKPOINT
        if not path.exists():
            return self.save_checkpoint()  # a folder that cannot be written should fail now, not after hours
        if not resume:
            raise InputError.of("out", f"{folder}, which holds a run", "another folder, or resume=True to go on")
        remove_leftovers(folder)
        self._restore(Checkpoint.load(path), path)

    @property
    def checkpoint_due(self) -> bool:
        return time.perf_counter() - self._last_checkpoint >= self.recipe.checkpoint_every_seconds

    def save_checkpoint(self) -> None:
        """Write the run's state into its folder, if it has one."""
        self._last_checkpoint = time.perf_counter()
        if self.folder is None:
            return
        tensors = {"weights": self.estimator.state_dict(), "average": self.average.tensors(),
                   "optimizer": optimizer_tensors(self.optimizer), "guard": self.guard.tensors(),
                   "window": self.window.tensors()}
        Checkpoint(self.steps, self.elapsed, self.record, tensors).save(self.folder / CHECKPOINT)

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        checkpoint.check_description(self.record, _MAY_CHANGE)
        tensors = checkpoint.tensors
        try:
            self.estimator.load_state_dict(tensors["weights"])
            self.average.load(tensors.get("average", {}))
            load_optimizer(self.optimizer, tensors.get("optimizer", {}))
            self.guard.load(tensors["guard"])
            self.window.load(tensors["window"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this estimator: {error}") from error
        self.steps, self._elapsed_earlier = checkpoint.step, checkpoint.elapsed
        self._began = time.perf_counter()

    def farewell(self, stop: StopRequest) -> str:
        """What to tell whoever stopped the run."""
        where = f"training stopped by {stop} after {self.steps} steps ({self.elapsed:.0f} s)"
        if self.folder is None:
            return f"{where}; no folder was given, so nothing was saved"
        return f"{where}; to go on, make the same call with out={str(self.folder)!r} and resume=True"

    # -- the end ------------------------------------------------------------------------------
    def finish(self) -> TrainResult:
        """The last row, the last checkpoint, and the estimator with its averaged weights."""
        if not self.history or self.history[-1]["step"] < self.steps:
            self._write_row()
        self.save_checkpoint()
        self._warn_if_diverged()
        self.average.apply()
        self.estimator.eval().encoder_dtype = None
        tuned = isinstance(self.recipe, TrainConfig) and self.recipe.start is not None
        if tuned and serves_every_model(self.estimator):
            self.estimator = self.estimator.looking(widenings=WIDENINGS)  # as where it came from
        result = {name: value for name, value in self.history[-1].items() if math.isfinite(value)}
        self.estimator.info = replace(self.estimator.info, training={**self.record, "result": result})
        familiar = min(_FAMILIAR_DATASETS, self.steps * self.recipe.batch_size // _SEEN_PER_FAMILIAR)
        if familiar >= LEAST_FAMILIAR:
            self.estimator.familiarise(self.task, familiar, self.recipe.seed)
        if self.folder is not None:
            with explained_disk_errors(self.folder):
                self.estimator.save(self.folder)
        return TrainResult(self.estimator, self.history)

    def _warn_if_diverged(self) -> None:
        lost = self.figures.get("negative_elbo", 0.0)
        if lost > _DIVERGED:
            warnings.warn(f"training has diverged, or the data are out of the model's reach: after {self.steps} steps "
                          f"the bound is {-lost:.2g} nats per observation. Try a tenth of the learning rate, a longer "
                          "warm-up, another seed, or standardised data", stacklevel=4)


def _record(estimator: Estimator, recipe: Recipe) -> dict[str, Any]:
    """JSON values that say what is trained and how; a resumed run must have the same."""
    parts = estimator.describe()
    return {**recipe.model_dump(mode="json"), **{name: parts[name] for name in ("model", "encoder", "density")}}
