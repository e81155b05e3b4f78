"""A user's own model: named parameters and a few plain functions of one parameter vector and one dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from posteria.errors import DataError, InputError, UnsupportedError
from posteria.models.base import Model, Target
from posteria.models.parameters import Parameter
from posteria.models.stacked import stacked, without_validation
from posteria.randomness import seeded
from posteria.types import Dataset

Params = dict[str, Tensor]  # constrained values by name, of one draw: weights (D,), intercept (), ...


class CustomModel(Model):
    """A model out of plain functions; the library adds draws, datasets, masks, bijections and gradients.

    Functions see one draw and one dataset: ``params`` is a dict of constrained values, x is (N, D), y is (N,)
    or None. They are mapped by ``torch.func.vmap``, so they must not branch on values. Any one of
    ``predict``, ``log_likelihood`` and ``simulate`` is enough, and ``predict`` gives the other two:

    - ``predict(params, x)``: a torch distribution of the rows, batch shape (N,).
    - ``log_likelihood(params, x, y)``: (N,) log density of each row; by default that of ``predict``.
    - ``simulate(params, x)``: y (N,), or a new x where target is "none"; by default a draw of ``predict``.
      It may use torch's global random state, which is seeded for it, and runs dataset by dataset.

    With ``simulate`` alone the model is a simulator: it has no likelihood, and needs the forward KL and an
    encoder that learns from datasets only. A padded feature has x = 0, and its parameters must not matter then
    (as in ``x @ weights``).

    Args:
        parameters: the blocks, in order.
        predict, log_likelihood, simulate: the functions above.
        draw_inputs: (rows, columns) -> x, the inputs of simulated datasets, extra columns included; standard
            normal by default.
        extra_columns: names of the leading columns of x that are not features, or names with the constraint
            that their values meet.
        axes: lengths of the axes that parameter shapes name.
        target: what y is: "real", "count", "class" or "none".
        num_classes: for target "class".
        exchangeable_axes: axes whose permutation leaves the likelihood unchanged.
        name: for messages, and for checkpoints if it is a registered model.
        priors: distributions per parameter name, in place of those in ``parameters``.

    Raises:
        InputError: no function at all, or arguments that do not fit.

    Examples:
        >>> from torch.distributions import Exponential
        >>> rate = Parameter("rate", support=constraints.positive, prior=Exponential(1.0))
        >>> model = CustomModel([rate], predict=lambda params, x: Exponential(params["rate"].expand(x.shape[0])))
        >>> data = Dataset.of(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))
        >>> model.log_likelihood(torch.zeros(1, 1, 1), data)
        tensor([[-6.]])
    """

    def __init__(self, parameters: Sequence[Parameter], *, predict: Callable[..., Distribution] | None = None,
                 log_likelihood: Callable[..., Tensor] | None = None, simulate: Callable[..., Tensor] | None = None,
                 draw_inputs: Callable[[int, int], Tensor] | None = None,
                 extra_columns: Sequence[str] | Mapping[str, Constraint] = (), axes: Mapping[str, int] | None = None,
                 target: Target = "real", num_classes: int = 0, exchangeable_axes: Sequence[str] = (),
                 name: str = "custom", priors: Mapping[str, Distribution] | None = None):
        if predict is None and log_likelihood is None and simulate is None:
            raise InputError.of("functions", "none", "at least one of predict, log_likelihood and simulate")
        if (target == "class") != (num_classes >= 2):
            raise InputError.of("num_classes", f"{num_classes} with target {target!r}", "2 or more for classes, else 0")
        self._predict, self._log_likelihood = predict, log_likelihood
        self._simulate, self._draw_inputs = simulate, draw_inputs
        self.extra_columns, self._column_constraints = tuple(extra_columns), _constraints_of(extra_columns)
        self.target, self.num_classes, self.exchangeable_axes = target, num_classes, tuple(exchangeable_axes)
        self.name = name  # type: ignore[misc]
        self.has_likelihood = log_likelihood is not None or predict is not None
        super().__init__(tuple(parameters), axes, priors)

    # -- likelihood ---------------------------------------------------------------------------
    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        self._require_likelihood()
        dataset = _without_padding(dataset)
        if self._log_likelihood is None:
            rows = self._distribution(theta, dataset).log_prob(_rows(self, dataset)[:, None])
        else:
            with without_validation():
                rows = self._mapped(dataset)(self._log_likelihood)(*self._arguments(theta, dataset))
        expected = (*theta.shape[:2], dataset.x.shape[1])
        if tuple(rows.shape) != expected:
            raise InputError.of("log_likelihood", f"values of shape {tuple(rows.shape[2:])} for one draw",
                                f"one value per row, shape {expected[2:]}")
        return rows

    # -- simulation and prediction ------------------------------------------------------------
    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator | None,
                    device: torch.device | str = "cpu") -> Tensor:
        if self._draw_inputs is None:
            return super().draw_inputs(num_datasets, rows, columns, generator, device)
        with seeded(generator):
            x = torch.stack([self._draw_inputs(rows, columns) for _ in range(num_datasets)])
        if tuple(x.shape[1:]) != (rows, columns):
            raise InputError.of("draw_inputs", f"shape {tuple(x.shape[1:])}", f"shape {(rows, columns)}")
        return x.to(device)

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        self._check_theta(theta[:, None], inputs)
        filled = _without_padding(inputs)
        with seeded(generator):
            values = self._one_by_one(theta, filled) if self._simulate else self._draw(theta, filled)
        expected = inputs.x.shape if self.target == "none" else inputs.x.shape[:2]
        if values.shape != expected:
            raise InputError.of("simulate", f"shape {tuple(values.shape[1:])}", f"shape {tuple(expected[1:])}")
        values = values.to(inputs.x.dtype)
        if self.target == "none":
            real = inputs.observed[..., None] & inputs.features[:, None]
            return Dataset(torch.where(real, values, 0.0), None, inputs.observed, inputs.features)
        return Dataset(inputs.x, torch.where(inputs.observed, values, 0.0), inputs.observed, inputs.features)

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        self._check_theta(theta, dataset)
        return self._distribution(theta, _without_padding(dataset))

    def _distribution(self, theta: Tensor, dataset: Dataset) -> Distribution:
        if self._predict is None:
            raise UnsupportedError.of("predict", "None", f"a function predict(params, x) for {self.name!r}")
        inputs = Dataset(dataset.x, None, dataset.observed, dataset.features)
        params, x, _ = self._arguments(theta, inputs)
        function = self._predict
        result = stacked(lambda params, x, y: function(params, x), self._mapped(inputs), params, x, None)
        expected = (*theta.shape[:2], dataset.x.shape[1])
        if tuple(result.batch_shape) != expected:
            raise InputError.of("predict", f"a distribution of batch shape {tuple(result.batch_shape[2:])}",
                                f"one distribution per row, batch shape {expected[2:]}")
        return result

    def _draw(self, theta: Tensor, inputs: Dataset) -> Tensor:
        return self._distribution(theta[:, None], inputs).sample()[:, 0]

    def _one_by_one(self, theta: Tensor, inputs: Dataset) -> Tensor:
        function, params = self._simulate, self.layout_of(inputs).constrain(theta)
        assert function is not None
        one = ({name: value[i] for name, value in params.items()} for i in range(len(inputs)))
        return torch.stack([function(draw, x) for draw, x in zip(one, inputs.x, strict=True)])

    def _arguments(self, theta: Tensor, dataset: Dataset) -> tuple[Params, Tensor, Tensor | None]:
        return self.layout_of(dataset).constrain(theta), dataset.x, dataset.y

    def _mapped(self, dataset: Dataset) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Turns a function of one draw and one dataset into one of draws (B, S, ...) and datasets (B, ...)."""
        target = None if dataset.y is None else 0

        def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
            over_draws = torch.func.vmap(function, in_dims=(0, None, None))
            return torch.func.vmap(over_draws, in_dims=(0, 0, target))

        return mapped

    def _require_likelihood(self) -> None:
        if not self.has_likelihood:
            raise UnsupportedError(f"{self.name!r} can only be simulated: it has no likelihood; "
                                   "give CustomModel predict or log_likelihood")

    # -- configuration ------------------------------------------------------------------------
    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        for place, (name, constraint) in enumerate(self._column_constraints.items()):
            good = constraint.check(dataset.x[..., place]) | ~dataset.observed
            if not good.all():
                value = float(dataset.x[..., place][~good][0])
                raise DataError.of(name, f"{value:g}", f"values that meet {constraint}")


def _constraints_of(columns: Sequence[str] | Mapping[str, Constraint]) -> dict[str, Constraint]:
    if isinstance(columns, Mapping):
        return dict(columns)
    return dict.fromkeys(columns, constraints.real)


def _rows(model: CustomModel, dataset: Dataset) -> Tensor:
    """What the model's distribution is about: y (B, N), or the rows x (B, N, D) themselves."""
    if model.target == "none":
        return dataset.x
    if dataset.y is None:
        raise DataError.of("y", "None", f"a target of kind {model.target!r} for {model.name}")
    return dataset.y


def _without_padding(dataset: Dataset) -> Dataset:
    """Padded rows filled with a real one: zeros might be out of the likelihood's domain, and spoil gradients."""
    first = dataset.observed.long().argmax(-1, keepdim=True)
    x = torch.where(dataset.observed[..., None], dataset.x, dataset.x.gather(1, _repeat(first, dataset.x)))
    y = dataset.y
    y = None if y is None else torch.where(dataset.observed, y, y.gather(1, first))
    return Dataset(x * dataset.features[:, None], y, dataset.observed, dataset.features)


def _repeat(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])
