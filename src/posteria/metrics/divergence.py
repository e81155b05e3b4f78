"""Divergences between distributions over theta, in closed form for Gaussians and from log densities at draws.

Monte Carlo figures come as an :class:`Estimate`: a value with its standard error over draws, for each dataset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics.checks import check_draws, check_finite, check_mask, check_shape


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo figure for each of B datasets.

    Attributes:
        value: (B,).
        standard_error: (B,) over draws; NaN where a log density was infinite.
    """

    value: Tensor
    standard_error: Tensor


# -- closed forms -----------------------------------------------------------------------------


def gaussian_kl(mean_p: Tensor, covariance_p: Tensor, mean_q: Tensor, covariance_q: Tensor) -> Tensor:
    """(B,) KL(p || q) of two normals, in nats, computed in double precision.

    (tr(Q⁻¹ P) + dᵀ Q⁻¹ d - dim + log |Q| - log |P|) / 2 with covariances P, Q and d the difference of means
    (Murphy 2022, Probabilistic Machine Learning: An Introduction, equation 6.33).

    Args:
        mean_p, mean_q: (B, P).
        covariance_p, covariance_q: (B, P, P), symmetric and positive definite.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, a covariance that is not positive definite.

    Examples:
        >>> zero, one = torch.zeros(1, 2), torch.eye(2)[None]
        >>> gaussian_kl(zero + 1, one, zero, one)
        tensor([1.], dtype=torch.float64)
    """
    p, q = _root("covariance_p", mean_p, covariance_p), _root("covariance_q", mean_q, covariance_q)
    apart = _difference(mean_p, mean_q)
    ratio = torch.linalg.solve_triangular(q, p, upper=False)
    square = torch.linalg.solve_triangular(q, apart[..., None], upper=False).square().sum((-1, -2))
    # A diagonal entry r of L_q^-1 L_p adds r² - 1 - log r², which vanishes without rounding where r = 1.
    scales = ratio.diagonal(dim1=-2, dim2=-1)
    off = ratio.tril(-1).square().sum((-1, -2))
    return 0.5 * ((scales.square() - 1.0 - 2.0 * scales.log()).sum(-1) + off + square)


def gaussian_symmetric_kl(mean_p: Tensor, covariance_p: Tensor, mean_q: Tensor, covariance_q: Tensor,
                          active: Tensor | None = None) -> Tensor:
    """(B,) (KL(p || q) + KL(q || p)) / 2 of two normals, divided by the number of active parameters, in nats.

    The definition of arXiv 2502.06601 (appendix on metrics). With M = L_q⁻¹ L_p for the Cholesky factors, the two
    divergences sum to (|M - M⁻ᵀ|² + |L_p⁻¹ d|² + |L_q⁻¹ d|²) / 2, a sum of squares: never below zero, and precise
    for normals that nearly agree.

    Args:
        mean_p, covariance_p, mean_q, covariance_q: as in :func:`gaussian_kl`.
        active: (B, P) bool, the parameters that count; default all. The others are dropped, as if marginalised.

    Raises:
        InputError: as :func:`gaussian_kl`, or a dataset without an active parameter.

    Examples:
        >>> zero, one = torch.zeros(1, 2), torch.eye(2)[None]
        >>> gaussian_symmetric_kl(zero + 1, one, zero, one)
        tensor([0.5000], dtype=torch.float64)
    """
    p, q = _root("covariance_p", mean_p, covariance_p, active), _root("covariance_q", mean_q, covariance_q, active)
    apart = _difference(mean_p, mean_q, active)[..., None]
    ratio = torch.linalg.solve_triangular(q, p, upper=False)
    inverse = torch.linalg.solve_triangular(p, q, upper=False)
    spread = (ratio - inverse.mT).square().sum((-1, -2))
    squares = sum(torch.linalg.solve_triangular(root, apart, upper=False).square().sum((-1, -2)) for root in (p, q))
    size = mean_p.shape[-1] if active is None else active.sum(-1)
    return 0.25 * (spread + squares) / size


def _root(argument: str, mean: Tensor, covariance: Tensor, active: Tensor | None = None) -> Tensor:
    """(B, P, P) Cholesky factor in double precision; the identity at inactive parameters."""
    check_shape(argument.replace("covariance", "mean"), mean, (None, None), "(datasets, parameters)")
    batch, size = mean.shape
    check_shape(argument, covariance, (batch, size, size), "(datasets, parameters, parameters)")
    eye = torch.eye(size, dtype=torch.double, device=mean.device)
    real = None
    if active is not None:
        check_mask("active", active, (batch, size), "parameter")
        real = active[:, :, None] & active[:, None]
        covariance = torch.where(real, covariance.double(), eye)
    check_finite(argument, covariance)
    root, failed = torch.linalg.cholesky_ex(covariance.double())
    if failed.any():
        raise InputError.of(argument, f"dataset {int(failed.nonzero()[0])} not positive definite",
                            "positive definite matrices")
    return root


def _difference(mean_p: Tensor, mean_q: Tensor, active: Tensor | None = None) -> Tensor:
    check_shape("mean_q", mean_q, mean_p.shape, "of mean_p")
    check_finite("mean_p", mean_p, active)
    check_finite("mean_q", mean_q, active)
    apart = mean_p.double() - mean_q.double()
    return apart if active is None else torch.where(active, apart, 0.0)


# -- from log densities at draws --------------------------------------------------------------


def monte_carlo_symmetric_kl(log_q_of_q: Tensor, log_p_of_q: Tensor, log_p_of_p: Tensor, log_q_of_p: Tensor,
                             num_parameters: int | Tensor) -> Estimate:
    """(KL(q || p) + KL(p || q)) / 2 per parameter, from normalised log densities at independent draws of q and p.

    Means over draws of log q - log p at q's and of log p - log q at p's (arXiv 2502.06601, appendix on metrics).

    Args:
        log_q_of_q, log_p_of_q: (B, S) at draws of q.
        log_p_of_p, log_q_of_p: (B, T) at draws of p.
        num_parameters: how many, or (B,) of each dataset.

    Raises:
        InputError: shapes that do not fit, fewer than 2 draws, no parameter.
    """
    _check_log_densities(log_q_of_q=log_q_of_q, log_p_of_q=log_p_of_q)
    _check_log_densities(log_p_of_p=log_p_of_p, log_q_of_p=log_q_of_p)
    check_shape("log_p_of_p", log_p_of_p, (len(log_q_of_q), None), "(datasets, draws)")
    size = torch.as_tensor(num_parameters, device=log_q_of_q.device)
    if (size < 1).any() or size.shape not in ((), (len(log_q_of_q),)):
        raise InputError.of("num_parameters", num_parameters, "1 or more, one number or one for each dataset")
    backward, forward = _mean(log_q_of_q - log_p_of_q), _mean(log_p_of_p - log_q_of_p)
    error = (backward.standard_error.square() + forward.standard_error.square()).sqrt()
    return Estimate(0.5 * (backward.value + forward.value) / size, 0.5 * error / size)


def elbo(log_joint: Tensor, log_q: Tensor) -> Estimate:
    """Evidence lower bound, E_q[log p(theta, D) - log q(theta)], in nats; the evidence less KL(q || posterior).

    Jordan et al. 1999. With :func:`eubo` it brackets the log evidence: their difference is the sum of both divergences.

    Args:
        log_joint, log_q: (B, S) log p(theta, D) and log q(theta) at draws of q.

    Raises:
        InputError: shapes that do not fit, fewer than 2 draws.

    Examples:
        >>> elbo(torch.tensor([[-3.0, -5.0]]), torch.tensor([[-1.0, -1.0]])).value
        tensor([-3.], dtype=torch.float64)
    """
    _check_log_densities(log_joint=log_joint, log_q=log_q)
    return _mean(log_joint - log_q)


def eubo(log_joint: Tensor, log_q: Tensor) -> Estimate:
    """Evidence upper bound, E_posterior[log p(theta, D) - log q(theta)], in nats; the evidence plus KL(posterior || q).

    Ji & Shen 2019, Blessing et al. 2024. Unlike the lower bound it sees modes that q has missed.

    Args:
        log_joint, log_q: (B, S) log p(theta, D) and log q(theta) at draws of the true posterior, not of q.

    Raises:
        InputError: as :func:`elbo`.
    """
    return elbo(log_joint, log_q)


def _check_log_densities(**densities: Tensor) -> None:
    (first, values), (second, others) = densities.items()
    check_shape(first, values, (None, None), "(datasets, draws)")
    check_shape(second, others, values.shape, f"of {first}")
    check_draws(first, values.shape[1], 2)


def _mean(values: Tensor) -> Estimate:
    values = values.double()
    return Estimate(values.mean(-1), values.std(-1) / values.shape[-1] ** 0.5)
