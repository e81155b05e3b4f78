"""Figures that say how good draws and densities are: pure functions of tensors, one value per dataset."""

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

__all__ = [
    "Estimate",
    "accuracy_ensembled",
    "accuracy_per_draw",
    "c2st",
    "crps",
    "elbo",
    "energy_score",
    "eubo",
    "expected_calibration_error",
    "gaussian_kl",
    "gaussian_symmetric_kl",
    "l2_ensembled",
    "l2_nearest",
    "l2_per_draw",
    "labelling_shares",
    "log_predictive_density",
    "mmd_squared",
    "monte_carlo_symmetric_kl",
    "sliced_wasserstein2_squared",
    "wasserstein2",
    "wasserstein2_squared",
]
