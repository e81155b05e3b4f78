"""Estimator: encoder + density + model, the trained thing, saved and loaded as one.

Loading rebuilds the parts from the JSON and checks a stored reference output; see :mod:`posteria.checkpoint`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from posteria.checkpoint import (
    DESCRIPTION,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS,
    build_model_of,
    compare_models,
    read_description,
    read_weights,
    signature_of,
)
from posteria.densities.base import Density
from posteria.encoders.base import Encoder
from posteria.errors import CheckpointError, DataError, InputError, UnsupportedError
from posteria.exact_terms import with_exact_terms
from posteria.files import write_together
from posteria.mixing import mixed
from posteria.models import Model, model_to_json
from posteria.parts import (
    Part,
    build_density,
    build_encoder,
    encoder_spec,
    exact_distribution,
    log_joint_for,
    over_theta,
    takes_exact_terms,
)
from posteria.polishing import polished
from posteria.posterior import Encoding, Posterior
from posteria.randomness import generator_for
from posteria.trust.familiarity import Familiarity, learn_familiarity
from posteria.types import Context, Dataset, ThetaDistribution

_REFERENCE, _FAMILIARITY = "reference.", "familiarity."
# Parameters up to which posteriors are polished: beyond, a step takes too long.
_MOST_POLISHED = 256
# Of the stored reference at most, unless an estimator takes more: small, and less at the mercy of rounding.
_REFERENCE_COLUMNS = 5
# Reference log densities may move by this much between machines (float32 sums in another order).
_TOLERANCE = 1e-2
# And by so many times what a relative change of x by rounding's size did when they were stored, the worst of a few.
_ROOM, _NUDGE, _NUDGES = 10.0, 1e-6, 4


@dataclass(frozen=True)
class EstimatorInfo:
    """What an estimator was trained on.

    Attributes:
        columns: (least, most) columns of x seen in training.
        rows: (least, most) observations seen in training.
        training: the record of its training, JSON values.
    """

    columns: tuple[int, int]
    rows: tuple[int, int] = (64, 128)
    training: Mapping[str, Any] = field(default_factory=dict)


class Drawing(Protocol):
    """The part of a task that :meth:`Estimator.familiarise` needs; see :class:`posteria.tasks.Task`."""

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu") -> (
            tuple[Dataset, Tensor | None]):
        """Datasets, and parameters that are not read."""
        ...


class Estimator(nn.Module):
    """Maps datasets to posteriors of one model.

    Args:
        model: the probabilistic model.
        encoder, density: registered names (or :class:`Part` with options).
        info: sizes it is meant for; ``info.columns[1]`` is the most columns that encoders with a maximum take.

    Examples:
        >>> estimator = Estimator(LinearRegression(), "iterative", "full", EstimatorInfo(columns=(2, 2)))
        >>> estimator.posterior(Dataset.of(x, y)).summary()
    """

    def __init__(self, model: Model, encoder: str | Part = "iterative", density: str | Part = "full",
                 info: EstimatorInfo | None = None):
        super().__init__()
        self.model = model
        self.info = info or EstimatorInfo(columns=(1, 100))
        self.encoder_part, self.density_part = Part.of(encoder), Part.of(density)
        # Posteriors of the model are known, and the networks are not asked (see for_model).
        self.exact = False
        # Posteriors are mixed of so many searches (see with_modes), and of searches in theta, too (see in_both_units).
        self.modes, self.both_units = 1, False
        # Steps of optimization, dataset by dataset, that posteriors take in the end (see polished).
        self.polish = 0
        # What training datasets look like; None where nobody has looked (see familiarise).
        self.familiarity: Familiarity | None = None
        # Encoders may run in lower precision (training sets this); likelihoods never do.
        self.encoder_dtype: torch.dtype | None = None
        most = self.info.columns[1]
        self.encoder: Encoder = build_encoder(self.encoder_part, encoder_spec(model, most, self.density_part))
        fixed = self.info.columns[0] == most or not self.encoder.free_size
        self.density: Density = build_density(self.density_part, self.encoder, model, most if fixed else None)

    @property
    def fixed_size(self) -> bool:
        """Datasets are padded to the most columns, because encoder or density has one size."""
        return not (self.encoder.free_size and self.density.free_size)

    def for_model(self, model: Model, exact: bool = False) -> Estimator:
        """The same networks, weights shared, for another model: itself where it is the model already.

        Args:
            model: whose posteriors are wanted.
            exact: its posteriors are known, so that the networks need not be asked; see
                :func:`posteria.parts.known_exactly`.

        Raises:
            UnsupportedError: the encoder is made for one model, or the density for one number of parameters.
        """
        if model is self.model and exact == self.exact:
            return self
        if not self.density.free_size or self.density.spec.num_parameters is not None:
            raise UnsupportedError("density: made for one number of parameters; takes an estimator of any number of "
                                   "columns")
        other = copy.copy(self)
        encoder = self.encoder.for_spec(encoder_spec(model, self.info.columns[1], self.density_part))
        other._modules = {**self._modules, "encoder": encoder}
        other.model, other.exact, other.familiarity = model, exact, None
        return other

    def looking(self, **search: int) -> Estimator:
        """The same networks, weights shared, with another length of search: more looks cost time and no training.

        Args:
            search: ``climbs``, ``widenings`` or ``candidates`` of the iterative encoder, see
                :class:`posteria.encoders.IterativeEncoder`.

        Raises:
            UnsupportedError: the encoder does not search.
        """
        encoder = self.encoder.looking(**search)
        other = copy.copy(self)
        other._modules = {**self._modules, "encoder": encoder}
        other.encoder_part = self.encoder_part.with_options(
            **{name: value for name, value in search.items() if name != "start"})
        return other

    def with_modes(self, modes: int) -> Estimator:
        """The same networks, whose posteriors are mixtures of what several searches find: for more than one mode.

        Args:
            modes: number of searches, each from a start of its own; see :func:`posteria.mixing.mixed`.

        Raises:
            InputError: fewer than one.
            UnsupportedError: the encoder does not search.
        """
        if modes < 1:
            raise InputError.of("modes", repr(modes), "1 or more")
        other = self.looking(start=0)
        other.modes = modes
        return other

    def in_both_units(self) -> Estimator:
        """The same networks, whose posteriors mix what is found in whitened parameters and in the model's own.

        Heavy-tailed priors bend one or the other out of a Gaussian's shape, depending on how much the data say. For
        networks that serve every model, with the density option ``whiten``; at twice the cost.
        """
        other = copy.copy(self)
        other.both_units = True
        return other

    def polished(self, steps: int) -> Estimator:
        """The same networks, whose answers are optimised dataset by dataset in the end; see :mod:`posteria.polishing`.

        Exact posteriors, and those of more than 256 parameters, are left as they are.

        Args:
            steps: of Adam; 0 is the networks' answer.

        Raises:
            InputError: fewer than none.
        """
        if steps < 0:
            raise InputError.of("polish", repr(steps), "a number of steps, 0 or more")
        other = copy.copy(self)
        other.polish = steps
        return other

    def with_exact_terms(self) -> Estimator:
        """The same networks; where an answer is far from normal, observations then enter as they are, one by one.

        The same as the density's option ``exact_terms``. For models whose observations see one linear combination of
        theta each: generalized linear models of one output, without parameters of their own. See
        :mod:`posteria.densities.exact_terms`; other models' answers, and those that are close to normal, stay as they
        are.
        """
        return self._with_density(exact_terms=True)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Check a dataset against the model and the sizes known, and pad it where the networks need it.

        Raises:
            DataError: too many features, or data that the model cannot have produced.
        """
        self.model.check(dataset)
        columns, extra = dataset.x.shape[-1], len(self.model.extra_columns)
        least, most = self.info.columns
        fixed = self.fixed_size or least == most
        if columns > most and fixed:
            raise DataError.of("x", f"{columns - extra} features", f"at most {most - extra} features")
        if columns < most and least == most:
            raise DataError.of("x", f"{columns - extra} features", f"exactly {most - extra} features")
        return dataset.padded(dataset.x.shape[1], most) if self.fixed_size and columns < most else dataset

    def distribution(self, dataset: Dataset) -> ThetaDistribution:
        """q(theta | D) for datasets as :meth:`prepare` returns them, differentiable in the weights."""
        return self._distribution(self.context(dataset), dataset)

    def context(self, dataset: Dataset) -> Context:
        """What the encoder makes of datasets as :meth:`prepare` returns them."""
        log_joint = log_joint_for(self.density_part, self.model, dataset)
        autocast = nullcontext() if self.encoder_dtype is None else torch.autocast(
            dataset.device.type, self.encoder_dtype)
        with autocast:
            return self.encoder(dataset, log_joint)

    def _distribution(self, context: Context, dataset: Dataset) -> ThetaDistribution:
        return over_theta(self.density(context), self.density_part, self.model, dataset)

    def forward(self, dataset: Dataset) -> ThetaDistribution:
        return self.distribution(dataset)

    @torch.no_grad()
    def posterior(self, dataset: Dataset) -> Posterior:
        """The posterior of one or many datasets.

        Raises:
            DataError: see :meth:`prepare`.
        """
        was_training = self.training
        self.eval()
        try:
            prepared = self.prepare(dataset.to(self.device))
            if self.exact:
                return Posterior(self.model, prepared, exact_distribution(self.model, prepared), self.info)
            context = self.context(prepared)
            found = [self._distribution(context, prepared),
                     *(search.distribution(prepared) for search in self._searches()[1:])]
            distribution = found[0] if len(found) == 1 else mixed(found, self.model, prepared)
            if self.polish and self.model.layout_of(prepared).size <= _MOST_POLISHED:
                distribution = polished(distribution, self.model, prepared, self.polish)
            if takes_exact_terms(self.density_part):
                distribution = with_exact_terms(distribution, self.model, prepared)
            return Posterior(self.model, prepared, distribution, self.info,
                             encoding=Encoding(context.summary, self.familiarity))
        finally:
            self.train(was_training)

    def _searches(self) -> list[Estimator]:
        """Those that posteriors are mixed of, the estimator's own first."""
        searches = [self, *(self.looking(start=start) for start in range(1, self.modes))]
        return searches + [search._with_density(whiten=False) for search in searches] if self.both_units else searches

    def _with_density(self, **options: bool) -> Estimator:
        other = copy.copy(self)
        other.density_part = self.density_part.with_options(**options)
        return other

    def _log_prob(self, dataset: Dataset, theta: Tensor) -> Tensor:
        """(B, S) what the reference output is made of: without exact terms, whose choice hangs on the last digits."""
        return self._with_density(exact_terms=False).posterior(dataset).distribution.log_prob(theta)

    def familiarise(self, task: Drawing, num_datasets: int = 1024, seed: int = 0) -> None:
        """Remember what training datasets look like, so that :meth:`Posterior.diagnose` can say what is unlike them.

        Saved with the estimator. Training does this at its end; for an estimator saved without, load, call this with
        its task, and save again.

        Args:
            task: draws training datasets.
            num_datasets: how many, 64 or more.
            seed: of the datasets.
        """
        def draw(number: int, generator: torch.Generator) -> Dataset:
            return self.prepare(task.draw(number, generator, self.device)[0])

        def summaries(dataset: Dataset) -> Tensor:
            encoding = self.posterior(dataset).encoding
            assert encoding is not None  # an estimator's posterior has one
            return encoding.summary

        self.familiarity = learn_familiarity(draw, summaries, num_datasets, seed, self.device)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # -- saving and loading -------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        """JSON description from which :meth:`load` rebuilds the parts."""
        return {
            "format": FORMAT, "format_version": FORMAT_VERSION, "model": model_to_json(self.model),
            "encoder": asdict(self.encoder_part), "density": asdict(self.density_part), "info": asdict(self.info),
            "exact": self.exact, "modes": self.modes, "both_units": self.both_units, "polish": self.polish,
            "signature": signature_of(self.model, self.info.columns[1]),
        }

    def save(self, path: str | Path, reference: Dataset | None = None) -> None:
        """Write the estimator into the directory ``path`` (made if missing), atomically per file.

        Args:
            path: directory.
            reference: a small dataset whose posterior density is stored and checked on loading;
                by default one simulated from the model.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        familiarity = {} if self.familiarity is None else self.familiarity.tensors()
        data = safetensors.torch.save(
            weights | self._reference(reference) | {_FAMILIARITY + k: v for k, v in familiarity.items()})
        description = self.describe() | {"sha256": hashlib.sha256(data).hexdigest()}
        write_together({folder / WEIGHTS: data, folder / DESCRIPTION: json.dumps(description, indent=1).encode()})

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None, check_reference: bool = True) -> Estimator:
        """Load what :meth:`save` wrote.

        Args:
            path: directory.
            model: the model object, required for a user's own model (code is not stored).
            check_reference: refuse what does not give its reference output. False is for an estimator of an older
                version of the library, whose search ended elsewhere: compare its answers before you save it anew.

        Raises:
            CheckpointError: missing, corrupt or foreign files, a model that differs from the one trained,
                or a reference output that is not reproduced.
        """
        folder = Path(path)
        description = read_description(folder)
        tensors = read_weights(folder, description)
        model = model or build_model_of(description, folder)
        compare_models(description, model, folder)
        info = description["info"]
        estimator = cls(model, Part.of(description["encoder"]), Part.of(description["density"]),
                        EstimatorInfo(tuple(info["columns"]), tuple(info["rows"]), info["training"]))
        estimator.exact, estimator.modes = description.get("exact", False), description.get("modes", 1)
        estimator.both_units, estimator.polish = description.get("both_units", False), description.get("polish", 0)
        reference = {k: tensors.pop(k) for k in list(tensors) if k.startswith(_REFERENCE)}
        estimator.familiarity = Familiarity.from_tensors(
            {k.removeprefix(_FAMILIARITY): tensors.pop(k) for k in list(tensors) if k.startswith(_FAMILIARITY)})
        try:
            estimator.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{folder / WEIGHTS}: weights do not fit the described networks: {error}") from error
        if check_reference:
            estimator._check_reference(reference, folder)
        return estimator.eval()

    @torch.no_grad()
    def _reference(self, dataset: Dataset | None) -> dict[str, Tensor]:
        dataset = (dataset or self._simulated_reference()).to(self.device)  # as it is: loading pads it again
        theta = self.posterior(dataset).sample_theta(4, generator_for(0, device=self.device))
        log_prob = self._log_prob(dataset, theta)
        stored = {"x": dataset.x, "theta": theta, "log_prob": log_prob,
                  "sensitivity": self._sensitivity(dataset, theta, log_prob)}
        if dataset.y is not None:
            stored["y"] = dataset.y
        return {_REFERENCE + k: v.cpu().contiguous() for k, v in stored.items()}

    def _sensitivity(self, dataset: Dataset, theta: Tensor, log_prob: Tensor) -> Tensor:
        """() by how much log densities change with the last digits of x: a network's search may end elsewhere."""
        generator, worst = generator_for(2, device=self.device), log_prob.new_zeros(())
        for _ in range(_NUDGES):
            nudge = _NUDGE * torch.randn(dataset.x.shape, generator=generator, device=self.device)
            nudge[..., :len(self.model.extra_columns)] = 0.0
            moved = self._log_prob(replace(dataset, x=dataset.x * (1 + nudge)), theta)
            worst = torch.fmax(worst, (moved - log_prob).abs().max())
        return worst

    def _simulated_reference(self) -> Dataset:
        least, most = self.info.columns
        generator, rows, columns = generator_for(1), self.info.rows[0], min(max(least, _REFERENCE_COLUMNS), most)
        x = self.model.draw_inputs(2, rows, columns, generator)
        inputs = Dataset(x, None, torch.ones(2, rows, dtype=torch.bool), torch.ones(2, columns, dtype=torch.bool))
        theta = self.model.sample_prior(inputs, 1, generator)[:, 0]
        return self.model.simulate(theta, inputs, generator)

    @torch.no_grad()
    def _check_reference(self, reference: Mapping[str, Tensor], folder: Path) -> None:
        parts = {k.removeprefix(_REFERENCE): v for k, v in reference.items()}
        if not {"x", "theta", "log_prob"} <= set(parts):
            raise CheckpointError(f"{folder / WEIGHTS}: lacks its reference output")
        dataset = Dataset.of(parts["x"], parts.get("y"))
        log_prob = self._log_prob(dataset, parts["theta"])
        difference = float((log_prob - parts["log_prob"]).abs().max())
        allowed = _TOLERANCE * float(parts["log_prob"].abs().max().clamp(min=1))
        allowed += _ROOM * float(parts["sensitivity"]) if "sensitivity" in parts else 0.0
        if not difference <= allowed:
            raise CheckpointError(
                f"{folder}: the stored reference output is not reproduced: log densities differ by {difference:.3g} "
                f"(allowed {allowed:.3g}); weights, code or model changed since it was saved. Takes "
                "Estimator.load(path, check_reference=False) to be used all the same"
            )
