"""Figures that say how good draws and densities are: pure functions of tensors, one value per dataset."""

from posteria.metrics.calibration import Calibration, Coverage, expected_coverage, rank_ecdf, sbc, sbc_ranks, tarp
from posteria.metrics.convergence import Convergence, ess_bulk, ess_tail, r_hat
from posteria.metrics.divergence import (
    Estimate,
    elbo,
    eubo,
    gaussian_kl,
    gaussian_symmetric_kl,
    monte_carlo_symmetric_kl,
)
from posteria.metrics.labellings import labelling_shares
from posteria.metrics.predictive import (
    accuracy_ensembled,
    accuracy_per_draw,
    crps,
    energy_score,
    expected_calibration_error,
    l2_ensembled,
    l2_nearest,
    l2_per_draw,
    log_predictive_density,
)
from posteria.metrics.two_sample import (
    c2st,
    mmd_squared,
    sliced_wasserstein2_squared,
    wasserstein2,
    wasserstein2_squared,
)
from posteria.metrics.uniformity import UniformityTest, Verdict, simultaneous_band

__all__ = [
    "Calibration",
    "Convergence",
    "Coverage",
    "Estimate",
    "UniformityTest",
    "Verdict",
    "accuracy_ensembled",
    "accuracy_per_draw",
    "c2st",
    "crps",
    "elbo",
    "energy_score",
    "ess_bulk",
    "ess_tail",
    "eubo",
    "expected_calibration_error",
    "expected_coverage",
    "gaussian_kl",
    "gaussian_symmetric_kl",
    "l2_ensembled",
    "l2_nearest",
    "l2_per_draw",
    "labelling_shares",
    "log_predictive_density",
    "mmd_squared",
    "monte_carlo_symmetric_kl",
    "r_hat",
    "rank_ecdf",
    "sbc",
    "sbc_ranks",
    "simultaneous_band",
    "sliced_wasserstein2_squared",
    "tarp",
    "wasserstein2",
    "wasserstein2_squared",
]
