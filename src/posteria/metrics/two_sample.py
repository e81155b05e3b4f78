"""How far apart two sets of draws are, for each dataset: Wasserstein distances, MMD, a classifier's accuracy.

Draws a (B, S, P) and b (B, T, P) of the same parameters; ``active`` (B, P) says which of them count. Distances are in
the units of theta, so standardise where parameters differ in scale (the classifier does it itself). Distances between
finite sets of one distribution are above zero: compare with the distance between two sets of reference draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics.checks import check_draws, check_finite, check_mask, check_shape
from posteria.randomness import generator_for

_FOLDS = 5
# Below this a fold's accuracy moves in steps too coarse to mean anything.
_LEAST_CLASSIFIED = 20
_HIDDEN, _EPOCHS = (32, 32), 100
# The network simplex stops for lack of steps well after any number of draws that fits into memory.
_MOST_STEPS = 100_000_000
# Distances between draws that are held at once.
_CHUNK_ENTRIES = 2**23
_Pair = tuple[np.ndarray, np.ndarray]


# -- optimal transport ------------------------------------------------------------------------


def wasserstein2_squared(a: Tensor, b: Tensor, active: Tensor | None = None) -> Tensor:
    """(B,) squared 2-Wasserstein distance: min over couplings of E|x - y|², exact for the two sets of draws.

    By the network simplex of POT (Flamary et al. 2021), one dataset after the other: about half a second for
    1,000 draws of each and some seconds for 3,000. Above zero for finite sets of one distribution, by much in many
    dimensions.

    Args:
        a: (B, S, P) draws.
        b: (B, T, P) draws of the same parameters.
        active: (B, P) bool, the parameters that count; default all.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, no draw or no active parameter.

    Examples:
        >>> wasserstein2_squared(torch.zeros(1, 3, 2), torch.ones(1, 4, 2))
        tensor([2.], dtype=torch.float64)
    """
    return _each(_exact_transport, a, b, active)


def wasserstein2(a: Tensor, b: Tensor, active: Tensor | None = None) -> Tensor:
    """(B,) 2-Wasserstein distance, the square root of :func:`wasserstein2_squared`; arguments and errors as there.

    Table 6 of arXiv 2502.06601 says squared, but prints numbers of this size: draws of a standard normal prior in 100
    dimensions are about 14 = √200 from a posterior that has contracted to a point drawn from it.
    """
    return wasserstein2_squared(a, b, active).sqrt()


def sliced_wasserstein2_squared(a: Tensor, b: Tensor, active: Tensor | None = None, num_projections: int = 500,
                                seed: int = 0) -> Tensor:
    """(B,) squared sliced 2-Wasserstein distance: the mean over directions of that between projections.

    Bonneel et al. 2015, by POT. About 1 / P of the unsliced one in P dimensions, and fast for many draws.

    Args:
        a, b, active: as in :func:`wasserstein2_squared`.
        num_projections: how many random directions.
        seed: of the directions, which are the same for all datasets with as many active parameters.

    Raises:
        InputError: as :func:`wasserstein2_squared`, or no direction.
    """
    if num_projections < 1:
        raise InputError.of("num_projections", num_projections, "1 or more")
    return _each(lambda x, y: _sliced(x, y, num_projections, seed), a, b, active)


def _exact_transport(a: np.ndarray, b: np.ndarray) -> float:
    import ot
    from scipy.spatial.distance import cdist

    return np.asarray(ot.emd2([], [], cdist(a, b, "sqeuclidean"), numItermax=_MOST_STEPS)).item()


def _sliced(a: np.ndarray, b: np.ndarray, num_projections: int, seed: int) -> float:
    import ot

    size = a.shape[1]
    directions = torch.randn(size, num_projections, dtype=torch.double, generator=generator_for(seed))
    directions = directions / directions.norm(dim=0)
    return np.asarray(ot.sliced_wasserstein_distance(a, b, projections=directions.numpy(), p=2)).item() ** 2


# -- kernels ----------------------------------------------------------------------------------


def mmd_squared(a: Tensor, b: Tensor, active: Tensor | None = None) -> Tensor:
    """(B,) squared maximum mean discrepancy, unbiased: E k(x, x') + E k(y, y') - 2 E k(x, y) over different draws.

    k(x, y) = exp(-|x - y|² / (2 s²)), s the median distance between the draws of both (Gretton et al. 2012, equation 3
    and section 8). About zero, and below it as often as above, where a and b are of one distribution. Where most draws
    are equal, so that s = 0, the kernel is one for equal draws and zero for others.

    Args:
        a, b, active: as in :func:`wasserstein2_squared`.

    Raises:
        InputError: as there, or fewer than 2 draws of either.
    """
    _check_pair(a, b, active, least=2)
    both = torch.cat([a, b], 1).double()
    both = both if active is None else torch.where(active[:, None], both, 0.0)
    chunks = both.split(max(1, _CHUNK_ENTRIES // both.shape[1] ** 2))
    return torch.cat([_mmd(chunk, a.shape[1]) for chunk in chunks])


def _mmd(both: Tensor, size: int) -> Tensor:
    """(B,) of draws (B, S + T, P), the first ``size`` of which are a."""
    kernel = _kernel(torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist"))
    within = _mean_off_diagonal(kernel[:, :size, :size]) + _mean_off_diagonal(kernel[:, size:, size:])
    return within - 2 * kernel[:, :size, size:].mean((1, 2))


def _kernel(distances: Tensor) -> Tensor:
    row, column = torch.triu_indices(*distances.shape[1:], offset=1, device=distances.device)
    width = distances[:, row, column].median(-1).values.clamp(min=torch.finfo(distances.dtype).tiny)
    return torch.exp(-0.5 * (distances / width[:, None, None]).square())


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    size = kernel.shape[-1]
    return (kernel.sum((1, 2)) - size) / (size * (size - 1))  # the diagonal is one


# -- classifiers ------------------------------------------------------------------------------


def c2st(a: Tensor, b: Tensor, active: Tensor | None = None, seed: int = 0) -> Tensor:
    """(B,) classifier two-sample test: how often a classifier tells draws of a from draws of b, out of sample.

    About 0.5 where nothing tells them apart, to 1 where everything does (Lopez-Paz & Oquab 2017). The classifier is a
    perceptron with two hidden layers, on draws standardised by a and their squares (without which it hardly sees a
    wrong spread in many dimensions); the accuracy is over five stratified folds. Under equality its standard
    deviation is about 0.5 / √(S + T), on both sides of 0.5. About a second per dataset of 2 × 500 draws.

    Args:
        a: (B, S, P) draws.
        b: (B, S, P) as many draws, of the same parameters.
        active: (B, P) bool, the parameters that count; default all.
        seed: of the folds and of the classifier.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, fewer than 20 draws, or not as many of b.
    """
    _check_pair(a, b, active, _LEAST_CLASSIFIED)
    if a.shape[1] != b.shape[1]:
        raise InputError.of("b", f"{b.shape[1]} draws", f"{a.shape[1]}, as many as a")
    return _each(lambda x, y: _separation(x, y, seed), a, b, active)


def _separation(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    scale = np.where(a.std(0) > 0, a.std(0), 1.0)
    # Sorted first, so that folds do not depend on the order of the draws.
    draws = np.concatenate([_ordered((sample - a.mean(0)) / scale) for sample in (a, b)])
    inputs = np.concatenate([draws, (draws**2 - 1.0) / 2**0.5], 1)
    labels = np.repeat([0, 1], len(a))
    classifier = MLPClassifier(_HIDDEN, max_iter=_EPOCHS, random_state=seed)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Held-out accuracy stands by itself, wherever training stopped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(classifier, inputs, labels, cv=folds, scoring="accuracy").mean())


def _ordered(draws: np.ndarray) -> np.ndarray:
    return draws[np.lexsort(draws.T)]


# -- one dataset after the other --------------------------------------------------------------


def _each(distance: Callable[[np.ndarray, np.ndarray], float], a: Tensor, b: Tensor, active: Tensor | None) -> Tensor:
    """(B,) a function of two arrays of draws, inactive parameters left out, for every dataset."""
    _check_pair(a, b, active, least=1)
    values = [distance(*_arrays(a, b, active, index)) for index in range(len(a))]
    return torch.tensor(values, dtype=torch.double, device=a.device)


def _arrays(a: Tensor, b: Tensor, active: Tensor | None, index: int) -> _Pair:
    kept = slice(None) if active is None else active[index]
    return a[index][:, kept].detach().double().cpu().numpy(), b[index][:, kept].detach().double().cpu().numpy()


def _check_pair(a: Tensor, b: Tensor, active: Tensor | None, least: int) -> None:
    check_shape("a", a, (None, None, None), "(datasets, draws, parameters)")
    check_shape("b", b, (a.shape[0], None, a.shape[2]), "(datasets, draws, parameters)")
    check_draws("a", a.shape[1], least)
    check_draws("b", b.shape[1], least)
    real = None if active is None else active[:, None]
    if active is not None:
        check_mask("active", active, (a.shape[0], a.shape[2]), "parameter")
    check_finite("a", a, real)
    check_finite("b", b, real)
