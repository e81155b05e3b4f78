"""How well draws of theta predict held-out rows: errors, accuracies and proper scores, one figure per dataset.

``observed`` (B, N) says which rows are real and ``features`` (B, D), where it is taken, which columns are; whatever
stands elsewhere does not count. Means over rows are over real rows. Per draw, a figure is the mean over draws of the
error of predicting with that draw; ensembled, it is the error of the prediction averaged over draws (arXiv 2502.06601,
appendix on metrics). Errors per draw and accuracies reward over-confidence: read them beside a proper score
(``log_predictive_density``, ``crps``, ``energy_score``; Gneiting & Raftery 2007).

Sums run in double precision, whatever the inputs are in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from posteria.errors import InputError
from posteria.metrics.checks import check_draws, check_finite, check_mask, check_shape

# Distances between draws that are held at once.
_CHUNK_ENTRIES = 2**23


# -- squared errors ---------------------------------------------------------------------------


def l2_per_draw(mean: Tensor, target: Tensor, observed: Tensor, features: Tensor | None = None) -> Tensor:
    """(B,) squared error of the prediction of each draw: mean over s, n of |mean_sn - target_n|².

    Squares are summed over columns (arXiv 2502.06601, appendix on metrics).

    Args:
        mean: (B, S, N, D) mean of the predictive distribution of each draw. For a target (B, N), pass D = 1.
        target: (B, N, D) held-out observations, in the same units.
        observed: (B, N) bool, real rows.
        features: (B, D) bool, real columns; default all.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, no draw, or a dataset without a row or column.

    Examples:
        >>> mean = torch.tensor([[[[1.0]], [[3.0]]]])  # one dataset, two draws, one row, one column
        >>> l2_per_draw(mean, torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor([5.], dtype=torch.float64)
    """
    mean, target = _checked_rows("mean", mean, target, observed, features)
    return _mean_over_rows((mean - target[:, None]).square().sum(-1, dtype=torch.double).mean(1), observed)


def l2_ensembled(mean: Tensor, target: Tensor, observed: Tensor, features: Tensor | None = None) -> Tensor:
    """(B,) squared error of the prediction averaged over draws: mean over n of |mean over s of mean_sn - target_n|².

    Never more than :func:`l2_per_draw`, by the spread of the draws. Arguments and errors as there.

    Examples:
        >>> mean = torch.tensor([[[[1.0]], [[3.0]]]])
        >>> l2_ensembled(mean, torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor([4.], dtype=torch.float64)
    """
    mean, target = _checked_rows("mean", mean, target, observed, features)
    return _mean_over_rows((mean.mean(1, dtype=torch.double) - target).square().sum(-1), observed)


def l2_nearest(means: Tensor, target: Tensor, observed: Tensor, features: Tensor | None = None) -> Tensor:
    """(B,) squared distance to the nearest component: mean over s, n of min over k of |means_sk - target_n|².

    For mixtures (arXiv 2502.06601, appendix on metrics): it does not depend on how components are labelled.

    Args:
        means: (B, S, K, D) component means of each draw; (B, S, N, K, D) where they differ from row to row.
        target, observed, features: as in :func:`l2_per_draw`.

    Raises:
        InputError: as :func:`l2_per_draw`.

    Examples:
        >>> means = torch.tensor([[[[-1.0], [2.0]]]])
        >>> l2_nearest(means, torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor([1.], dtype=torch.float64)
    """
    by_row = means.ndim == 5
    shape, names = ((None,) * 5, "draws, rows") if by_row else ((None,) * 4, "draws")
    check_shape("means", means, shape, f"(datasets, {names}, components, columns)")
    check_draws("means", means.shape[1], 1)
    _check_target(target, (len(means), means.shape[2] if by_row else None, means.shape[-1]), observed, features)
    real = _columns(features, means)
    real = real & observed[:, None, :, None, None] if by_row else real
    check_finite("means", means, real)
    squares = _squares_to(_masked(target, observed[..., None] & _columns(features, target)), _masked(means, real))
    return _mean_over_rows(squares.amin(-1).mean(1), observed)


def _squares_to(target: Tensor, means: Tensor) -> Tensor:
    """(B, S, N, K) squared distances from rows (B, N, D) to means (B, S, K, D) or (B, S, N, K, D)."""
    if means.ndim == 5:
        return (means - target[:, None, :, None]).square().sum(-1, dtype=torch.double)
    return torch.cdist(target[:, None].double(), means.double()).square()


# -- classes ----------------------------------------------------------------------------------


def accuracy_per_draw(probs: Tensor, labels: Tensor, observed: Tensor) -> Tensor:
    """(B,) how often the likeliest class of a draw is right: mean over s, n of [argmax_c probs_snc = label_n].

    Args:
        probs: (B, S, N, C) class probabilities of each draw.
        labels: (B, N) classes 0 to C - 1, of any dtype.
        observed: (B, N) bool, real rows.

    Returns:
        Fractions, 0 to 1.

    Raises:
        InputError: shapes that do not fit, numbers that are not probabilities or classes, or a dataset without a row.
    """
    _check_classes(probs, labels, observed)
    return _mean_over_rows((probs.argmax(-1) == labels[:, None]).double().mean(1), observed)


def accuracy_ensembled(probs: Tensor, labels: Tensor, observed: Tensor) -> Tensor:
    """(B,) how often the likeliest class is right, by probabilities averaged over draws.

    Arguments, values and errors as :func:`accuracy_per_draw`.
    """
    _check_classes(probs, labels, observed)
    return _mean_over_rows((probs.mean(1).argmax(-1) == labels).double(), observed)


def expected_calibration_error(probs: Tensor, labels: Tensor, observed: Tensor, num_bins: int = 15) -> Tensor:
    """(B,) expected calibration error: sum over bins of n_b / n |accuracy_b - confidence_b|.

    The confidence of a row is its largest probability; bins ((b - 1) / M, b / M] are of equal width (Guo et al. 2017,
    equation 3). With few rows per bin it is above zero even for calibrated probabilities.

    Args:
        probs: (B, N, C) class probabilities, averaged over draws.
        labels: (B, N) classes 0 to C - 1.
        observed: (B, N) bool, real rows.
        num_bins: M.

    Raises:
        InputError: as :func:`accuracy_per_draw`, or no bin.

    Examples:
        >>> probs = torch.tensor([[[0.9, 0.1], [0.9, 0.1]]])  # sure at 0.9, right once in two
        >>> error = expected_calibration_error(probs, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
        >>> round(float(error), 6)
        0.4
    """
    if num_bins < 1:
        raise InputError.of("num_bins", num_bins, "1 or more")
    check_shape("probs", probs, (None, None, None), "(datasets, rows, classes)")
    _check_classes(probs[:, None], labels, observed)
    confidence, chosen = probs.max(-1)
    edges = torch.arange(1, num_bins, device=probs.device, dtype=probs.dtype) / num_bins
    bins = one_hot(torch.bucketize(confidence.contiguous(), edges), num_bins).double() * observed[..., None]
    gap = torch.where(observed, (chosen == labels).double() - confidence.double(), 0.0)
    return (bins * gap[..., None]).sum(1).abs().sum(-1) / observed.sum(-1)


# -- proper scores ----------------------------------------------------------------------------


def log_predictive_density(row_log_prob: Tensor, observed: Tensor) -> Tensor:
    """(B,) nats per row: mean over n of log(mean over s of p(row_n | theta_s)).

    The log score of the posterior predictive (Gelman, Hwang & Vehtari 2014, equation 5, divided by the rows). Jensen's
    inequality biases it down with few draws. Log densities may be infinite; NaN gives NaN for that dataset alone.

    Args:
        row_log_prob: (B, S, N) log p(row | theta) of held-out rows.
        observed: (B, N) bool, real rows.

    Raises:
        InputError: shapes that do not fit, no draw, or a dataset without a row.
    """
    check_shape("row_log_prob", row_log_prob, (None, None, None), "(datasets, draws, rows)")
    check_draws("row_log_prob", row_log_prob.shape[1], 1)
    check_mask("observed", observed, (row_log_prob.shape[0], row_log_prob.shape[2]), "row")
    log_prob = torch.logsumexp(row_log_prob, 1) - math.log(row_log_prob.shape[1])
    return _mean_over_rows(log_prob, observed)


def crps(samples: Tensor, target: Tensor, observed: Tensor) -> Tensor:
    """(B,) continuous ranked probability score, in the units of the target; smaller is better.

    CRPS = E|x - y| - E|x - x'| / 2, with the second mean over pairs of different samples: the fair estimator, unbiased
    for any number of them (Gneiting & Raftery 2007, equation 21; Ferro 2014). By sorting, in O(S log S) per row.

    Args:
        samples: (B, S, N) sampled observations, one for each draw of theta.
        target: (B, N) held-out observations.
        observed: (B, N) bool, real rows.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, fewer than 2 samples or a dataset without a
            row.

    Examples:
        >>> samples = torch.tensor([[[-1.0], [1.0]]])
        >>> crps(samples, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))  # 1 - 2 / 2
        tensor([0.], dtype=torch.float64)
    """
    check_shape("samples", samples, (None, None, None), "(datasets, draws, rows)")
    check_shape("target", target, (samples.shape[0], samples.shape[2]), "(datasets, rows)")
    check_draws("samples", samples.shape[1], 2)
    samples, target = _checked_rows("samples", samples[..., None], target[..., None], observed, None)
    from_target = (samples - target[:, None])[..., 0]
    size = samples.shape[1]
    # Sorted sample number k is the larger one of k - 1 pairs and the smaller one of size - k.
    weights = 2 * torch.arange(1, size + 1, device=samples.device, dtype=torch.double) - size - 1
    apart = (weights[:, None] * from_target.sort(1).values).sum(1) / (size * (size - 1))
    return _mean_over_rows(from_target.abs().mean(1, dtype=torch.double) - apart, observed)


def energy_score(samples: Tensor, target: Tensor, observed: Tensor, features: Tensor | None = None) -> Tensor:
    """(B,) energy score of predictions in several columns: E|x - y| - E|x - x'| / 2 with Euclidean norms.

    The CRPS for one column; strictly proper (Gneiting & Raftery 2007, equation 22). The second mean is over pairs of
    different samples, so that it is unbiased. It costs S² N D, or S (S + N) D for samples that all rows share.

    Args:
        samples: (B, S, N, D) sampled observations, one for each draw of theta; (B, S, 1, D) where all rows have the
            same predictive distribution, as in a model of x alone.
        target, observed, features: as in :func:`l2_per_draw`.

    Raises:
        InputError: as :func:`crps`.
    """
    check_shape("samples", samples, (None,) * 4, "(datasets, draws, rows, columns)")
    check_draws("samples", samples.shape[1], 2)
    if samples.shape[2] == 1:
        samples, target = _checked_shared(samples, target, observed, features)
        error = torch.cdist(target.double(), samples[:, :, 0].double()).mean(-1)
    else:
        samples, target = _checked_rows("samples", samples, target, observed, features)
        error = torch.linalg.vector_norm(samples - target[:, None], dim=-1, dtype=torch.double).mean(1)
    return _mean_over_rows(error - 0.5 * _mean_distance(samples), observed)


def _mean_distance(samples: Tensor) -> Tensor:
    """(B, N) mean distance between different samples (B, S, N, D) of a row."""
    size = samples.shape[1]
    clouds = samples.transpose(1, 2).flatten(0, 1).split(max(1, _CHUNK_ENTRIES // size**2))
    sums = torch.cat([_sum_of_distances(cloud.double()) for cloud in clouds])
    return sums.view(len(samples), -1) / (size * (size - 1))


def _sum_of_distances(points: Tensor) -> Tensor:
    centred = points - points.mean(1, keepdim=True)  # distances come from squares, precise near zero only
    return torch.cdist(centred, centred).sum((1, 2))


# -- masks and checks -------------------------------------------------------------------------


def _mean_over_rows(values: Tensor, observed: Tensor) -> Tensor:
    """(B,) mean of values (B, N) over real rows."""
    return _masked(values, observed).sum(-1, dtype=torch.double) / observed.sum(-1)


def _masked(values: Tensor, real: Tensor) -> Tensor:
    """Zero where not real."""
    return torch.where(real, values, 0.0)


def _columns(features: Tensor | None, values: Tensor) -> Tensor:
    """The mask of columns, with as many axes as ``values``."""
    if features is None:
        return torch.ones((), dtype=torch.bool, device=values.device)
    return features.view(len(features), *[1] * (values.ndim - 2), -1)


def _checked_rows(argument: str, values: Tensor, target: Tensor, observed: Tensor,
                  features: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predictions (B, S, N, D) and target (B, N, D), zero outside the masks."""
    check_shape(argument, values, (None,) * 4, "(datasets, draws, rows, columns)")
    check_draws(argument, values.shape[1], 1)
    _check_target(target, (values.shape[0], *values.shape[2:]), observed, features)
    real = observed[..., None] & _columns(features, target)
    check_finite(argument, values, real[:, None])
    return _masked(values, real[:, None]), _masked(target, real)


def _checked_shared(samples: Tensor, target: Tensor, observed: Tensor,
                    features: Tensor | None) -> tuple[Tensor, Tensor]:
    """As :func:`_checked_rows` for samples (B, S, 1, D) that all rows share, padded ones too."""
    _check_target(target, (len(samples), None, samples.shape[-1]), observed, features)
    columns = _columns(features, samples)
    check_finite("samples", samples, columns)
    return _masked(samples, columns), _masked(target, observed[..., None] & _columns(features, target))


def _check_target(target: Tensor, shape: Sequence[int | None], observed: Tensor, features: Tensor | None) -> None:
    check_shape("target", target, shape, "(datasets, rows, columns)")
    check_mask("observed", observed, (target.shape[0], target.shape[1]), "row")
    if features is not None:
        check_mask("features", features, (target.shape[0], target.shape[2]), "column")
    check_finite("target", target, observed[..., None] & _columns(features, target))


def _check_classes(probs: Tensor, labels: Tensor, observed: Tensor) -> None:
    check_shape("probs", probs, (None,) * 4, "(datasets, draws, rows, classes)")
    check_draws("probs", probs.shape[1], 1)
    check_shape("labels", labels, (probs.shape[0], probs.shape[2]), "(datasets, rows)")
    check_mask("observed", observed, (labels.shape[0], labels.shape[1]), "row")
    if (~((probs >= 0) & (probs <= 1 + 1e-4)).all(-1) & observed[:, None]).any():
        raise InputError.of("probs", "numbers that are not probabilities", "probabilities, 0 to 1")
    classes = probs.shape[-1]
    if (~((labels >= 0) & (labels < classes) & (labels == labels.round())) & observed).any():
        raise InputError.of("labels", "values that are no classes", f"whole numbers, 0 to {classes - 1}")
