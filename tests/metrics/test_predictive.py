"""Predictive figures against hand-made examples and closed forms, whatever the padding, the batch and the order."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from posteria.errors import InputError
from posteria.metrics import (
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

B, S, N, D, C, K = 3, 6, 7, 4, 3, 2
GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def probabilities(*shape: int) -> Tensor:
    return randn(*shape).softmax(-1)


OBSERVED = torch.arange(N) < torch.tensor([[7], [5], [1]])
FEATURES = torch.arange(D) < torch.tensor([[4], [2], [3]])
LABELS = torch.randint(C, (B, N), generator=GENERATOR)
# Every figure with arguments; where a figure takes (values, target) they come first.
Arguments = tuple[Tensor, ...]
CASES: dict[Callable[..., Tensor], Arguments] = {
    l2_per_draw: (randn(B, S, N, D), randn(B, N, D), OBSERVED, FEATURES),
    l2_ensembled: (randn(B, S, N, D), randn(B, N, D), OBSERVED, FEATURES),
    l2_nearest: (randn(B, S, K, D), randn(B, N, D), OBSERVED, FEATURES),
    energy_score: (randn(B, S, N, D), randn(B, N, D), OBSERVED, FEATURES),
    crps: (randn(B, S, N), randn(B, N), OBSERVED),
    accuracy_per_draw: (probabilities(B, S, N, C), LABELS, OBSERVED),
    accuracy_ensembled: (probabilities(B, S, N, C), LABELS, OBSERVED),
    expected_calibration_error: (probabilities(B, N, C), LABELS, OBSERVED),
    log_predictive_density: (randn(B, S, N), OBSERVED),
}
every_figure = pytest.mark.parametrize("figure", CASES, ids=lambda figure: figure.__name__)


def row_axis(figure: Callable[..., Tensor], position: int) -> int | None:
    """Which axis of an argument counts rows."""
    if figure is l2_nearest and position == 0:
        return None
    if position > 0:
        return None if CASES[figure][position] is FEATURES else 1
    return 1 if figure is expected_calibration_error else 2


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# -- what must not matter ---------------------------------------------------------------------


@every_figure
def test_alone_as_in_a_batch(figure: Callable[..., Tensor]) -> None:
    alone = [figure(*(argument[i:i + 1] for argument in CASES[figure])) for i in range(B)]
    together = figure(*CASES[figure])
    assert together.shape == (B,)
    assert together.dtype == torch.double
    close(together, torch.cat(alone))


@every_figure
def test_padding_does_not_count(figure: Callable[..., Tensor]) -> None:
    """Cut every dataset to its real rows and columns; and put NaN where nothing is real."""
    expected = figure(*CASES[figure])
    for index in range(B):
        rows, columns = int(OBSERVED[index].sum()), int(FEATURES[index].sum())
        cut = []
        for position, argument in enumerate(CASES[figure]):
            axis = row_axis(figure, position)
            kept = argument[index:index + 1] if axis is None else argument[index:index + 1].narrow(axis, 0, rows)
            cut.append(kept[..., :columns] if kept.shape[-1] == D else kept)
        close(expected[index:index + 1], figure(*cut))


@every_figure
def test_values_under_masks_do_not_count(figure: Callable[..., Tensor]) -> None:
    first, *others = CASES[figure]
    axis = row_axis(figure, 0)
    shape = [B, *[1] * (first.ndim - 1)]
    if axis is not None:
        shape[axis] = N
        first = torch.where(OBSERVED.view(shape), first, torch.nan)
    if any(other is FEATURES for other in others):
        first = torch.where(FEATURES.view(B, *[1] * (first.ndim - 2), D), first, torch.nan)
    close(figure(first, *others), figure(*CASES[figure]))


@every_figure
def test_order_of_draws_and_rows_does_not_count(figure: Callable[..., Tensor]) -> None:
    rows, draws = torch.randperm(N, generator=GENERATOR), torch.randperm(S, generator=GENERATOR)
    moved = []
    for position, argument in enumerate(CASES[figure]):
        axis = row_axis(figure, position)
        moved.append(argument if axis is None else argument.index_select(axis, rows))
    if figure is not expected_calibration_error:
        moved[0] = moved[0][:, draws]
    close(figure(*moved), figure(*CASES[figure]))


# -- known answers ----------------------------------------------------------------------------


def test_errors_per_draw_are_those_ensembled_and_the_spread() -> None:
    mean, target, observed, features = CASES[l2_per_draw]
    spread = (mean - mean.mean(1, keepdim=True)).square() * features[:, None, None]
    spread = (spread.sum(-1).mean(1) * observed).sum(-1) / observed.sum(-1)
    close(l2_per_draw(mean, target, observed, features),
          l2_ensembled(mean, target, observed, features) + spread.double())


def test_nearest_component_is_that_of_every_row() -> None:
    means, target, observed, features = CASES[l2_nearest]
    expected = torch.zeros(B).double()
    for b in range(B):
        rows, columns = observed[b], features[b]
        apart = (target[b, rows][None, :, None, columns] - means[b, :, None][..., columns]).square().sum(-1)
        expected[b] = apart.amin(-1).mean()
    close(l2_nearest(means, target, observed, features), expected)
    by_row = means[:, :, None].expand(-1, -1, N, -1, -1)
    close(l2_nearest(by_row, target, observed, features), expected)
    close(l2_nearest(means.flip(2), target, observed, features), expected)


def test_a_single_component_is_a_mean() -> None:
    mean, target, observed, features = CASES[l2_per_draw]
    close(l2_nearest(mean[:, :, :, None], target, observed, features), l2_per_draw(mean, target, observed, features))


def test_accuracies_by_hand() -> None:
    """Two draws that disagree on the second of two rows; averaged, they get it wrong."""
    probs = torch.tensor([[[[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.7, 0.3]]]])
    labels, observed = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert accuracy_per_draw(probs, labels, observed).item() == 0.75
    assert accuracy_ensembled(probs, labels, observed).item() == 0.5


def test_calibration_error_by_hand() -> None:
    """Ten bins. (0.5, 0.6]: 3 rows at 0.55, 1 right. (0.8, 0.9]: 2 rows at 0.85 and 0.87, both right; one padded."""
    confidence = torch.tensor([[0.55, 0.55, 0.55, 0.85, 0.87, 0.99]]).double()
    probs = torch.stack([confidence, 1 - confidence], -1)
    labels = torch.tensor([[0, 1, 1, 0, 0, 1]])
    observed = torch.tensor([[True, True, True, True, True, False]])
    expected = (3 * abs(1 / 3 - 0.55) + 2 * (1 - 0.86)) / 5
    assert expected_calibration_error(probs, labels, observed, num_bins=10).item() == pytest.approx(expected)
    one_bin = abs(3 / 5 - (3 * 0.55 + 0.85 + 0.87) / 5)
    assert expected_calibration_error(probs, labels, observed, num_bins=1).item() == pytest.approx(one_bin)


def test_bins_hold_their_upper_end() -> None:
    """0.6 lies in (0.5, 0.6], together with 0.55: errors of opposite sign cancel there and nowhere else."""
    probs = torch.tensor([[[0.6, 0.4], [0.55, 0.45]]])
    error = expected_calibration_error(probs, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), 10)
    assert error.item() == pytest.approx(abs(0.4 - 0.55) / 2, abs=1e-6)


def test_calibrated_classes_have_little_error() -> None:
    probs = probabilities(20, 2000, 3)
    labels = torch.multinomial(probs.flatten(0, 1), 1, generator=GENERATOR).view(20, 2000)
    error = expected_calibration_error(probs, labels, torch.ones(20, 2000, dtype=torch.bool))
    wrong = expected_calibration_error(probs.square() / probs.square().sum(-1, keepdim=True), labels,
                                       torch.ones(20, 2000, dtype=torch.bool))
    assert error.mean() < 0.03 < 0.1 < wrong.mean()


def test_log_predictive_density_averages_densities() -> None:
    row_log_prob = torch.tensor([[[math.log(0.2), 0.0], [math.log(0.4), 0.0]]])
    observed = torch.tensor([[True, False]])
    assert log_predictive_density(row_log_prob, observed).item() == pytest.approx(math.log(0.3))


def test_impossible_rows_are_infinitely_bad_and_nan_stays_with_its_dataset() -> None:
    row_log_prob = torch.zeros(3, 2, 1)
    row_log_prob[0] = -torch.inf
    row_log_prob[1, 0] = torch.nan
    figures = log_predictive_density(row_log_prob, torch.ones(3, 1, dtype=torch.bool))
    assert figures[0] == -torch.inf
    assert figures[1].isnan()
    assert figures[2] == 0


def crps_of_normal(mean: float, sd: float, target: Tensor) -> Tensor:
    """sd (z (2 Φ(z) - 1) + 2 φ(z) - 1 / √π) (Gneiting & Raftery 2007, equation 21 and below)."""
    z = (target - mean) / sd
    standard = Normal(0.0, 1.0)
    return sd * (z * (2 * standard.cdf(z) - 1) + 2 * standard.log_prob(z).exp() - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("draws", [2, 5, 400])
def test_crps_of_normal_samples_is_unbiased(draws: int) -> None:
    datasets = 40_000 // draws
    target = torch.tensor([[0.3, -1.0, 2.5]]).expand(datasets, -1)
    samples = 0.5 + 2.0 * randn(datasets, draws, 3)
    scores = crps(samples, target, torch.ones(datasets, 3, dtype=torch.bool))
    expected = crps_of_normal(0.5, 2.0, target[0]).mean()
    assert abs(scores.mean() - expected) < 4 * scores.std() / math.sqrt(datasets)


def test_crps_is_the_mean_over_pairs() -> None:
    samples, target, observed = CASES[crps]
    pairs = (samples[:, :, None] - samples[:, None]).abs().sum((1, 2)) / (S * (S - 1))
    rows = (samples - target[:, None]).abs().mean(1) - 0.5 * pairs
    close(crps(samples, target, observed), ((rows * observed).sum(-1) / observed.sum(-1)).double())


def test_energy_score_of_one_column_is_the_crps() -> None:
    samples, target, observed = CASES[crps]
    close(energy_score(samples[..., None], target[..., None], observed), crps(samples, target, observed))


def test_samples_may_be_shared_by_all_rows() -> None:
    samples, target, observed, features = CASES[energy_score]
    one = torch.where(features[:, None, None], samples[:, :, :1], torch.nan)
    expected = energy_score(samples[:, :, :1].expand(-1, -1, N, -1), target, observed, features)
    close(energy_score(one, target, observed, features), expected)


def test_energy_score_is_smallest_for_the_truth() -> None:
    """Against 2-D standard normals: the truth beats half and twice the spread, and a shift."""
    observed, target = torch.ones(200, 10, dtype=torch.bool), randn(200, 10, 2)
    noise = randn(200, 50, 10, 2)
    truth = energy_score(noise, target, observed)
    for wrong in (0.5 * noise, 2 * noise, noise + 0.7):
        gap = energy_score(wrong, target, observed) - truth
        assert gap.mean() > 4 * gap.std() / math.sqrt(200)


def test_energy_score_of_normals_in_closed_form() -> None:
    """E|x - y| = 2 Γ((D + 1) / 2) / Γ(D / 2) for x - y ~ N(0, 2 I); the score is half of it in expectation."""
    datasets, columns = 400, 5
    score = energy_score(randn(datasets, 20, 4, columns), randn(datasets, 4, columns),
                         torch.ones(datasets, 4, dtype=torch.bool))
    expected = math.exp(math.lgamma((columns + 1) / 2) - math.lgamma(columns / 2))
    assert abs(score.mean() - expected) < 4 * score.std() / math.sqrt(datasets)


def test_chunks_do_not_change_the_energy_score(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = energy_score(*CASES[energy_score])
    monkeypatch.setattr("posteria.metrics.predictive._CHUNK_ENTRIES", 1)
    close(energy_score(*CASES[energy_score]), expected)


# -- errors -----------------------------------------------------------------------------------


@every_figure
def test_a_dataset_without_rows_is_refused(figure: Callable[..., Tensor]) -> None:
    nothing = OBSERVED.clone()
    nothing[1] = False
    arguments = [nothing if argument is OBSERVED else argument for argument in CASES[figure]]
    with pytest.raises(InputError, match="observed: got no row in dataset 1; takes at least one row per dataset"):
        figure(*arguments)


@every_figure
def test_masks_are_boolean_and_shapes_fit(figure: Callable[..., Tensor]) -> None:
    numbers = [argument.float() if argument is OBSERVED else argument for argument in CASES[figure]]
    with pytest.raises(InputError, match="observed: got dtype"):
        figure(*numbers)
    short = [argument[:, :-1] if argument is OBSERVED else argument for argument in CASES[figure]]
    with pytest.raises(InputError, match=r"observed: got shape \(3, 6\); takes shape \(datasets, rows\) = \(3, 7\)"):
        figure(*short)
    with pytest.raises(InputError, match="got shape"):
        figure(CASES[figure][0][0], *CASES[figure][1:])
    with pytest.raises(InputError, match="got shape"):
        figure(CASES[figure][0][:2], *CASES[figure][1:])


@pytest.mark.parametrize("figure", [l2_per_draw, l2_ensembled, l2_nearest, energy_score, crps],
                         ids=lambda figure: figure.__name__)
def test_numbers_are_finite(figure: Callable[..., Tensor]) -> None:
    first, target, *others = CASES[figure]
    broken = first.clone()
    broken.view(-1)[0] = torch.inf
    with pytest.raises(InputError, match=r"got 1 NaN or infinite values, the first at \(0, 0, 0"):
        figure(broken, target, *others)
    broken = target.clone()
    broken.view(-1)[0] = torch.nan
    with pytest.raises(InputError, match="target: got 1 NaN"):
        figure(first, broken, *others)


def test_classes_are_probabilities_and_labels() -> None:
    probs, labels, observed = CASES[accuracy_per_draw]
    with pytest.raises(InputError, match="probs: got numbers that are not probabilities"):
        accuracy_per_draw(3 * probs, labels, observed)
    with pytest.raises(InputError, match="labels: got values that are no classes; takes whole numbers, 0 to 2"):
        accuracy_ensembled(probs, labels + C, observed)
    with pytest.raises(InputError, match="num_bins: got 0; takes 1 or more"):
        expected_calibration_error(probs[:, 0], labels, observed, num_bins=0)


def test_scores_need_two_samples_and_columns_one() -> None:
    samples, target, observed = CASES[crps]
    with pytest.raises(InputError, match="samples: got 1 draw; takes 2 draws or more"):
        crps(samples[:, :1], target, observed)
    mean, target, observed, features = CASES[l2_per_draw]
    with pytest.raises(InputError, match="mean: got 0 draws"):
        l2_per_draw(mean[:, :0], target, observed, features)
    with pytest.raises(InputError, match="features: got no column in dataset 0"):
        l2_per_draw(mean, target, observed, torch.zeros_like(features))
