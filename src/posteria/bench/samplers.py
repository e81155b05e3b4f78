"""Do our Hamiltonian Monte Carlo and NumPyro's NUTS agree, and do both agree with exact posteriors?

Two implementations that share nothing but the model's definition (not even its density) run on the same datasets.
Posterior means and sds are compared in their combined Monte Carlo standard errors, so that two correct samplers give
z-scores of size one, however long the chains are. Where parameters can be permuted (mixtures, networks), what is
compared does not depend on the labelling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posteria.errors import InputError, UnsupportedError
from posteria.metrics.convergence import r_hat
from posteria.models import Model, build_model
from posteria.models.families import FAMILIES
from posteria.randomness import generator_for
from posteria.reference import run_baseline
from posteria.tasks import SimulatedTask
from posteria.types import Dataset

_ROWS = (64, 128)
_GRID_POINTS = 8
# Two correct samplers exceed the limit on the largest of all z-scores in about one case of a thousand.
_LEVEL = 1e-3
Quantities = Callable[[Model, Dataset, Tensor], Tensor]


# -- what is compared -------------------------------------------------------------------------------
def parameters(model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """theta (B, C, S, P) itself, unconstrained."""
    return theta


def labelling_free(model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """First and second moments (B, C, S, Q) over the means of a mixture, which no relabelling changes."""
    means = model.layout_of(dataset)["means"].constrained(theta)  # (B, C, S, K, D)
    second = means.mT @ means / means.shape[-2]
    row, column = torch.triu_indices(*second.shape[-2:])
    return torch.cat([means.mean(-2), second[..., row, column]], -1)


def predictions(model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """Means, or probabilities of all classes but the first, of new y at 8 fixed inputs; (B, C, S, Q)."""
    inputs = _grid(model, dataset)
    predicted = model.predict(theta.flatten(1, 2), inputs)
    values = predicted.probs[..., 1:] if model.target == "class" else predicted.mean  # type: ignore[attr-defined]
    return values.reshape(*theta.shape[:3], -1)


def _grid(model: Model, dataset: Dataset) -> Dataset:
    """The same standard normal inputs for every dataset."""
    shape = (1, _GRID_POINTS, dataset.x.shape[-1])
    x = torch.randn(shape, generator=generator_for(0), dtype=dataset.x.dtype).expand(len(dataset), -1, -1)
    return Dataset(x, None, torch.ones(x.shape[:2], dtype=torch.bool), dataset.features)


@dataclass(frozen=True)
class SamplerCase:
    """One model at one size.

    Attributes:
        model: registered name.
        columns: of x, extra columns included.
        options: of the model.
        quantities: what is compared, the log likelihood apart.
        methods: of :func:`posteria.reference.run_baseline`; the second is what the first is compared with.
        settings: of some methods. Chains that keep to one labelling never converge in theta, so that more rounds of
            them would be in vain; what is compared can have converged all the same.
    """

    model: str
    columns: int
    options: Mapping[str, Any] = field(default_factory=dict)
    quantities: Quantities = parameters
    methods: tuple[str, ...] = ("hmc", "nuts")
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _generalized(family: str, features: int) -> SamplerCase:
    """Some families have columns of their own, such as a number of trials."""
    extra = build_model("generalized_linear", family=family).extra_columns
    return SamplerCase("generalized_linear", features + len(extra), {"family": family})


_INFERRED = {"noise": "inferred"}
_ONE_ROUND = {"hmc": {"rounds": 1}, "nuts": {"attempts": 1}}
CASES: dict[str, SamplerCase] = {
    "gm_2d": SamplerCase("gaussian_mean", 2),
    "gmm_2d_2c": SamplerCase("gaussian_mixture", 2, quantities=labelling_free, settings=_ONE_ROUND),
    "lr_1d": SamplerCase("linear_regression", 1),
    "lr_2d": SamplerCase("linear_regression", 2),
    "lr_25d": SamplerCase("linear_regression", 25),
    "lr_1d_inferred": SamplerCase("linear_regression", 1, _INFERRED),
    "lr_2d_inferred": SamplerCase("linear_regression", 2, _INFERRED),
    "lr_25d_inferred": SamplerCase("linear_regression", 25, _INFERRED),
    "lc_2d_2c": SamplerCase("linear_classification", 2),
    "lc_2d_5c": SamplerCase("linear_classification", 2, {"classes": 5}),
    "nlr_1d": SamplerCase("neural_regression", 1, {"hidden": 8, "activation": "tanh"}, predictions,
                          settings=_ONE_ROUND),
    "nlc_2d": SamplerCase("neural_classification", 2, {"hidden": 4, "activation": "tanh", "temperature": 1.0},
                          predictions, settings=_ONE_ROUND),
    "poisson_5d": SamplerCase("poisson_regression", 6),
    **{f"glm_{family}_2d": _generalized(family, 2) for family in FAMILIES},
    "hierarchical_1d": SamplerCase("hierarchical", 2),
    "lr_100d": SamplerCase("linear_regression", 100, methods=("hmc", "nuts", "paper_hmc", "paper_langevin")),
}


# -- summaries --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Moments:
    """Means and sds (B, Q) with their Monte Carlo standard errors; zero for exact ones."""

    mean: Tensor
    sd: Tensor
    mean_error: Tensor
    sd_error: Tensor


def moments_of(draws: Tensor) -> Moments:
    """Of draws (B, C, S, Q), with errors sd / sqrt(ESS) (Vehtari et al. 2021); that of the sd by the delta method."""
    pooled = draws.flatten(1, 2)
    mean, sd = pooled.mean(1), pooled.std(1)
    squares = (draws - mean[:, None, None]) ** 2
    variance_error = squares.flatten(1, 2).std(1) / _effective_size(squares).sqrt()
    return Moments(mean, sd, sd / _effective_size(draws).sqrt(), variance_error / (2.0 * sd))


def _effective_size(draws: Tensor) -> Tensor:
    """(B, Q) effective sample size for the mean of draws (B, C, S, Q), as they are and not by ranks (ArviZ)."""
    import arviz

    batch, chains, length, count = draws.shape
    series = draws.permute(1, 2, 0, 3).reshape(chains, length, batch * count).numpy()
    sizes = arviz.ess(arviz.convert_to_dataset({"draws": series}), method="mean")["draws"]
    return torch.from_numpy(sizes.to_numpy()).reshape(batch, count)


def compare_moments(ours: Moments, reference: Moments) -> dict[str, float]:
    """z-scores of means and sds over all datasets and quantities, and the differences in posterior sds.

    Keys: ``quantities``, their number Q; ``mean_z_max``, ``mean_z_rms``, ``sd_z_max``, ``sd_z_rms``; ``z_limit``,
    which correct samplers exceed once in about a thousand times; ``mean_shift_max``, the largest difference of means
    in reference sds; ``sd_ratio_min`` and ``sd_ratio_max``.
    """
    of_mean = (ours.mean - reference.mean) / (ours.mean_error**2 + reference.mean_error**2).sqrt()
    of_sd = (ours.sd - reference.sd) / (ours.sd_error**2 + reference.sd_error**2).sqrt()
    limit = torch.special.ndtri(torch.tensor(1.0 - _LEVEL / (4.0 * of_mean.numel()), dtype=torch.float64))
    ratio = ours.sd / reference.sd
    shift = (ours.mean - reference.mean) / reference.sd
    return {"quantities": ours.mean.shape[-1],
            "mean_z_max": float(of_mean.abs().max()), "mean_z_rms": float(of_mean.square().mean().sqrt()),
            "sd_z_max": float(of_sd.abs().max()), "sd_z_rms": float(of_sd.square().mean().sqrt()),
            "z_limit": float(limit), "mean_shift_max": float(shift.abs().max()),
            "sd_ratio_min": float(ratio.min()), "sd_ratio_max": float(ratio.max())}


@dataclass(frozen=True)
class _Run:
    theta: Tensor  # (B, C, S, P)
    quantities: Tensor  # (B, C, S, Q), the log likelihood last
    divergences: int
    seconds: float

    def columns(self, prefix: str) -> dict[str, float]:
        """Of a row: how the chains went."""
        worst = r_hat(self.quantities).amax(-1)
        return {f"{prefix}r_hat": float(worst.max()), f"{prefix}converged": int((worst < 1.01).sum()),
                f"{prefix}divergences": self.divergences, f"{prefix}seconds": self.seconds}


# -- the bench --------------------------------------------------------------------------------------
def compare_samplers(cases: Sequence[str] | None = None, num_datasets: int = 10, num_chains: int = 4,
                     num_samples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Run every case's samplers on the same simulated datasets, and compare them.

    Args:
        cases: keys of ``CASES``; default all.
        num_datasets: B, of 64 to 128 rows, one number of rows per case.
        num_chains: C of each sampler.
        num_samples: S draws per chain.
        seed: of datasets and samplers.

    Returns:
        Rows: the first method against the second, and every method against the exact posterior where there is one.
        Columns: ``case``, ``datasets``, ``parameters``, ``method``, ``reference``, ``agrees`` (no z-score beyond the
        limit), those of :func:`compare_moments`, and for the method and (with prefix ``reference_``) the reference:
        ``r_hat`` of what is compared (the worst), ``converged`` (datasets with R-hat below 1.01), ``divergences`` and
        ``seconds`` for all datasets.

    Raises:
        InputError: an unknown case.
    """
    names = list(CASES) if cases is None else list(cases)
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        raise InputError.of("cases", str(unknown), f"names among {list(CASES)}")
    sizes = {"num_chains": num_chains, "num_samples": num_samples}
    return [row for name in names for row in _rows_of(name, CASES[name], num_datasets, sizes, seed)]


def _rows_of(name: str, case: SamplerCase, num_datasets: int, sizes: Mapping[str, int], seed: int) -> (
        list[dict[str, Any]]):
    model = build_model(case.model, **case.options)
    task = SimulatedTask(model, _ROWS, (case.columns, case.columns))
    dataset = task.draw(num_datasets, generator_for(seed))[0].double()
    runs = {method: _run(model, dataset, case, method, sizes, seed) for method in case.methods}
    labels = {"case": name, "datasets": num_datasets, "parameters": model.layout_of(dataset).size}
    first, second = case.methods[:2]
    rows = [labels | _row(first, runs[first], second, runs[second])]
    exact = _exact_moments(model, dataset)
    return rows if exact is None else rows + [labels | _exact_row(m, run, exact) for m, run in runs.items()]


def _run(model: Model, dataset: Dataset, case: SamplerCase, method: str, sizes: Mapping[str, int], seed: int) -> _Run:
    done = run_baseline(model, dataset, method, seed=seed, **sizes, **case.settings.get(method, {}))
    theta = done.theta.double()
    with torch.no_grad():
        likelihood = model.log_likelihood(theta.flatten(1, 2), dataset).reshape(*theta.shape[:3], 1)
        quantities = torch.cat([case.quantities(model, dataset, theta), likelihood], -1)
    return _Run(theta, quantities, int(done.divergences.sum()), done.seconds)


def _row(method: str, run: _Run, reference: str, other: _Run) -> dict[str, Any]:
    figures = compare_moments(moments_of(run.quantities), moments_of(other.quantities))
    return _labelled(method, reference, run, figures) | other.columns("reference_")


def _exact_row(method: str, run: _Run, exact: Moments) -> dict[str, Any]:
    return _labelled(method, "exact", run, compare_moments(moments_of(run.theta), exact))


def _labelled(method: str, reference: str, run: _Run, figures: dict[str, float]) -> dict[str, Any]:
    agrees = max(figures["mean_z_max"], figures["sd_z_max"]) < figures["z_limit"]
    labels = {"method": method, "reference": reference, "agrees": agrees}
    return labels | figures | run.columns("")


def _exact_moments(model: Model, dataset: Dataset) -> Moments | None:
    try:
        exact = model.exact_posterior(dataset)
    except UnsupportedError:
        return None
    return Moments(exact.mean, exact.stddev, torch.zeros(()), torch.zeros(()))
