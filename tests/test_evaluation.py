"""Evaluation: with the exact posterior in place of an estimator every figure has a known answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from posteria import evaluation
from posteria.densities.frame import Frame
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.low_rank import LowRankTheta
from posteria.errors import InputError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.evaluation import closed_form_symmetric_kl, evaluate, symmetric_kl
from posteria.metrics import l2_per_draw
from posteria.models.base import Model
from posteria.models.gaussian import GaussianMean
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.models.mixture import GaussianMixture
from posteria.posterior import Posterior
from posteria.training.validation import symmetric_kl_to
from posteria.types import Dataset


class Exact:
    """The exact posterior as a ThetaDistribution, moved by ``shift`` posterior sds in every parameter."""

    def __init__(self, exact: MultivariateNormal, active: Tensor, shift: float = 0.0):
        moved = exact.mean + active * shift * exact.variance.sqrt()
        self._normal, self.active = MultivariateNormal(moved, exact.covariance_matrix), active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(len(self.active), num_samples, self.active.shape[1], generator=generator).double()
        draws = (self._normal.mean[:, None] + noise @ self._normal.scale_tril.mT).float()
        return torch.where(self.active[:, None], draws, 0.0)

    def log_prob(self, theta: Tensor) -> Tensor:
        prior = torch.where(self.active[:, None], 0.0, Normal(0.0, 1.0).log_prob(theta.double())).sum(-1)
        return self._normal.log_prob(theta.double().transpose(0, 1)).T - prior

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        draws = self.rsample(num_samples, generator)
        return draws, self.log_prob(draws)

    def detach(self) -> Exact:
        return self

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        return None


@dataclass
class ExactEstimator:
    """The part of an estimator that evaluation needs, which knows the answer."""

    model: Model
    info: EstimatorInfo
    shift: float = 0.0
    fixed_size: bool = False
    device: torch.device | str = "cpu"

    def posterior(self, dataset: Dataset) -> Posterior:
        exact = Exact(self.model.exact_posterior(dataset), self.model.active(dataset), self.shift)
        return Posterior(self.model, dataset, exact, self.info)


def run(estimator: ExactEstimator, **options: int) -> dict[str, evaluation.Measured]:
    return evaluate(estimator, **options).figures  # type: ignore[arg-type]


def test_the_exact_posterior_is_perfect() -> None:
    """Linear regression with 2 features, 64 to 128 rows: 0.268 per draw and 0.260 ensembled, in expectation."""
    figures = run(ExactEstimator(LinearRegression(), EstimatorInfo((2, 2), (64, 128))), num_datasets=200)
    assert abs(figures["symmetric_kl"].mean) < 1e-3
    for level in (50, 80, 95):
        measured = figures[f"coverage_{level}"]
        assert abs(measured.mean - level / 100) < 4 * measured.standard_error
    for name, expected in (("l2_per_draw", 0.268), ("l2_ensembled", 0.259)):
        assert abs(figures[name].mean - expected) < 4 * figures[name].standard_error
        assert abs(figures[name].mean - figures[f"exact_{name}"].mean) < 2e-3


def test_a_shift_costs_the_known_divergence() -> None:
    """Both divergences between normals of one diagonal covariance, s sds apart, are s²/2 per parameter."""
    estimator = ExactEstimator(GaussianMean(), EstimatorInfo((3, 3), (20, 40)), shift=0.5)
    figures = run(estimator, num_datasets=40, num_samples=400)
    assert abs(figures["symmetric_kl"].mean - 0.125) < 4 * figures["symmetric_kl"].standard_error + 1e-3
    assert figures["coverage_50"].mean < 0.5


def test_gaussian_mean_errors_are_summed_over_columns() -> None:
    """2 columns: 2 (1 + 2/n) per draw, about 2.04 for 64 to 128 rows and 2.02 ensembled."""
    figures = run(ExactEstimator(GaussianMean(), EstimatorInfo((2, 2), (64, 128))), num_datasets=100)
    assert abs(figures["l2_per_draw"].mean - 2.04) < 4 * figures["l2_per_draw"].standard_error


def test_classes_have_accuracies_and_mixtures_their_nearest_mean() -> None:
    for model, name in ((LinearClassification(3), "accuracy_ensembled"), (GaussianMixture(2), "l2_per_draw")):
        estimator = Estimator(model, "deepsets", "gaussian", EstimatorInfo((2, 3), (10, 20)))
        figures = evaluate(estimator, num_datasets=4, num_samples=20).figures
        assert {name, "log_predictive", "coverage_95"} <= set(figures)
        assert "symmetric_kl" not in figures
        assert ("expected_calibration_error" in figures) == bool(model.num_classes)
        assert ("energy_score" in figures) != bool(model.num_classes)
        assert "crps" not in figures


def test_real_targets_have_the_crps_of_their_predictive() -> None:
    """Two features, noise sd 1/2: the predictive is about N(f, 0.26), its CRPS about sd / √π."""
    figures = run(ExactEstimator(LinearRegression(), EstimatorInfo((2, 2), (64, 128))), num_datasets=100)
    measured = figures["crps"]
    assert abs(measured.mean - math.sqrt(0.259 / math.pi)) < 4 * measured.standard_error
    assert abs(measured.mean - figures["exact_crps"].mean) < 2e-3
    shifted = run(ExactEstimator(LinearRegression(), EstimatorInfo((2, 2), (64, 128)), shift=3.0), num_datasets=100)
    assert shifted["crps"].mean > 1.05 * shifted["exact_crps"].mean


def test_rows_of_x_have_the_energy_score_of_their_predictive() -> None:
    """x - y ~ N(0, 2 I) in two columns, nearly: half of E|x - y| = √π / 2."""
    figures = run(ExactEstimator(GaussianMean(), EstimatorInfo((2, 2), (64, 128))), num_datasets=100)
    measured = figures["energy_score"]
    assert abs(measured.mean - math.sqrt(1.01 * math.pi) / 2) < 4 * measured.standard_error
    assert "crps" not in figures


def test_gaussian_densities_have_their_divergence_in_closed_form(generator: torch.Generator) -> None:
    """Full, diagonal and low rank, with an inactive parameter: the same as by Monte Carlo, without its error."""
    model, features = LinearRegression(), torch.tensor([[True, True], [True, False]])
    dataset = Dataset.of(torch.randn(2, 20, 2, generator=generator), torch.randn(2, 20, generator=generator),
                         features=features)
    exact, active = model.exact_posterior(dataset), model.active(dataset)
    mean = torch.where(active, exact.mean.float() + 0.1, 0.0)
    scale = torch.where(active, 1.2 * exact.variance.sqrt().float(), 1.0)
    loadings = 0.5 * torch.randn(2, 3, 2, generator=generator) * active[..., None]
    both = active[:, :, None] & active[:, None]
    factor = torch.where(both, torch.full((3, 3), 0.3).tril(-1), 0.0) + torch.eye(3)
    densities = (GaussianTheta(mean, scale, active), LowRankTheta(Frame(mean, scale, active), loadings),
                 GaussianTheta(mean, scale, active, factor))
    for density in densities:
        closed = closed_form_symmetric_kl(density, exact)
        assert closed is not None
        assert torch.equal(symmetric_kl(density, exact, model, dataset, 20, generator), closed)
        theta, log_q = density.rsample_and_log_prob(40_000, generator)
        sampled = symmetric_kl_to(exact, density, model, dataset, theta, log_q, generator)
        torch.testing.assert_close(closed, sampled, rtol=0.05, atol=0.0)


def test_nearly_exact_gaussians_keep_their_digits() -> None:
    """A density of single precision whose parameters are the exact ones, rounded: the rounding alone is left."""
    dataset = Dataset.of(torch.randn(1, 50, 30), torch.randn(1, 50))
    exact = LinearRegression().exact_posterior(dataset)
    factor = torch.linalg.cholesky(exact.precision_matrix).float()
    density = GaussianTheta(exact.mean.float(), torch.ones(1, 31), torch.ones(1, 31, dtype=torch.bool), factor)
    closed = closed_form_symmetric_kl(density, exact)
    assert closed is not None
    assert 0 <= closed.item() < 1e-10


def test_an_overflow_costs_its_own_dataset_only() -> None:
    mean = torch.zeros(2, 3, 4, 1)
    mean[0, 0, 0] = torch.inf
    target, observed = torch.ones(2, 4, 1), torch.ones(2, 4, dtype=torch.bool)
    figures = evaluation._finite_only(l2_per_draw, mean, target, observed)
    assert figures[0].isnan()
    assert figures[1] == 1


def test_variable_features_and_padding_work_with_the_exact_posterior() -> None:
    figures = run(ExactEstimator(LinearRegression(), EstimatorInfo((1, 4), (10, 20)), fixed_size=True),
                  num_datasets=20)
    assert abs(figures["symmetric_kl"].mean) < 1e-3


def test_a_seed_repeats_the_figures() -> None:
    estimator = ExactEstimator(LinearRegression(), EstimatorInfo((1, 2), (10, 20)))
    first, again, other = (run(estimator, num_datasets=4, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_progress_and_json() -> None:
    done: list[int] = []
    estimator = ExactEstimator(LinearRegression(), EstimatorInfo((1, 2), (10, 20)))
    result = evaluate(estimator, num_datasets=12, num_samples=20, progress=done.append)  # type: ignore[arg-type]
    assert done == [10, 12]
    values = result.to_json()
    assert values["rows"] == [10, 20]
    assert set(values["metrics"]["l2_per_draw"]) == {"mean", "standard_error"}


def test_numbers_too_small_are_refused() -> None:
    estimator = ExactEstimator(LinearRegression(), EstimatorInfo((1, 2), (10, 20)))
    with pytest.raises(InputError, match="num_datasets: got 1"):
        run(estimator, num_datasets=1)
    with pytest.raises(InputError, match="num_samples: got 5; takes 20 or more"):
        run(estimator, num_samples=5)
