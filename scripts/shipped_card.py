"""The model card of a shipped estimator: its prior and why, its training, and its quality by rows and features.

    python scripts/shipped_card.py [name ...]      # measure again, and write src/posteria/shipped/<name>/card.md
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posteria import shipped
from posteria.estimator import Estimator
from posteria.randomness import generator_for
from posteria.tasks import StandardisedTask
from posteria.tasks.standardised import draw_table_inputs
from posteria.types import Dataset

ROWS, COLUMNS = (8, 40, 200, 1000, 2000), (2, 10, 30, 100)
LEVEL, NUM_SAMPLES, HELD_OUT, MOST_DATASETS = 0.9, 400, 50, 64
MOST_CELLS = {"linear": 1_000_000, "neural": 200_000}
SEED = 77_001  # apart from any seed trained with


@dataclass(frozen=True)
class Card:
    """What is written about an estimator and not measured."""

    title: str
    model: str
    prior: str


_NETWORK_PRIOR = """hidden_weights ~ N(0, 0.3²), hidden_bias ~ N(0, 1), output_weights ~ N(0, 0.5²), for standardised x.

- The paper's N(0, 1) makes a network of 32 units and 10 features whose outputs have an sd of about 13: of standardised
  targets and of probabilities, that says that almost everything is noise-free and steep. Here a unit's input has an sd
  of 1.4 at 10 features and 3.2 at 100, and the output one of about 3 at 10 features: wide, and of the right order.
- Scales that fall with the number of features would suit wide tables better; a prior is one for all sizes.
"""
CARDS = {
    "linear_regression": Card(
        "linear_regression: linear regression, noise inferred",
        "y ~ N(x·weights + intercept, noise_scale²), one weight per feature; x and y standardised.",
        """weights ~ N(0, 1), intercept ~ N(0, 1), noise_scale ~ half-normal(1), for standardised x and y.

- With y standardised, one sd of a feature moves y by at most about one sd unless features are nearly collinear:
  scale 1 holds every plausible weight, leaves collinear ones room, and still has a say where features outnumber
  rows. In the mean it is ridge regression with penalty noise_scale².
- The mean of y is 0 by construction; 0/1 columns of labels, which are not centred, move the intercept off it by
  a fraction of an sd.
- The noise cannot exceed the sd of y by much, which is 1: a half-normal(1) is nearly flat over the range possible.""",
    ),
    "linear_classification": Card(
        "linear_classification: binary logistic regression",
        "P(y = second label) = sigmoid(x·weights + intercept), one weight per feature; x standardised.",
        """weights ~ N(0, 1), intercept ~ N(0, 5²), for standardised x.

- The mode of the posterior is then scikit-learn's LogisticRegression at its default C = 1, up to the intercept. It
  keeps weights finite where classes can be separated, which plain likelihood does not.
- The intercept holds the imbalance of classes (-4.6 for 1%), about which nothing is known beforehand: its prior is
  nearly flat over every imbalance that 2,000 rows can show. scikit-learn does not penalise it at all.""",
    ),
    "neural_regression": Card(
        "neural_regression: one hidden layer of 32 ReLU units, noise inferred",
        "y ~ N(f(x), noise_scale²), f(x) = output_weights · relu(hidden_weights x + hidden_bias); all standardised.",
        _NETWORK_PRIOR + """- noise_scale ~ half-normal(1): as for linear_regression.""",
    ),
    "neural_classification": Card(
        "neural_classification: one hidden layer of 32 ReLU units, two classes",
        "P(y) = softmax(f(x)), f(x) = output_weights · relu(hidden_weights x + hidden_bias) per class; x standardised.",
        _NETWORK_PRIOR,
    ),
}


@dataclass(frozen=True)
class Cell:
    """Quality at one size: figures of the trained and of the untrained estimator."""

    rows: int
    columns: int
    datasets: int
    trained: dict[str, float]
    untrained: dict[str, float]


def fresh(estimator: Estimator) -> Estimator:
    """The same estimator with weights as before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Estimator(estimator.model, estimator.encoder_part, estimator.density_part, estimator.info).eval()


@torch.no_grad()
def measure(estimator: Estimator) -> list[Cell]:
    """Every size of the grid."""
    untrained = fresh(estimator)
    return [_measure(estimator, untrained, rows, columns) for rows in ROWS for columns in COLUMNS]


def _measure(estimator: Estimator, untrained: Estimator, rows: int, columns: int) -> Cell:
    num = max(2, min(MOST_DATASETS, MOST_CELLS[estimator.model.name.partition("_")[0]] // (rows * columns)))
    most_cells = num * (rows + HELD_OUT) * columns
    task = StandardisedTask(estimator.model, (rows, rows), (columns, columns), most_cells=most_cells)
    whole, _ = task.draw(num, generator_for(SEED, rows * 1000 + columns), rows=rows + HELD_OUT)
    own, theta = _from_prior(estimator, num, rows, columns)
    figures = [{**_fit(e, whole, rows), "coverage": _coverage(e, own, theta)} for e in (estimator, untrained)]
    return Cell(rows, columns, num, *figures)


def _fit(estimator: Estimator, whole: Dataset, rows: int) -> dict[str, float]:
    dataset, held_out = _rows(whole, slice(None, rows)), _rows(whole, slice(rows, None))
    theta, log_q = estimator.distribution(dataset).rsample_and_log_prob(NUM_SAMPLES, generator_for(SEED))
    ratio = (estimator.model.log_joint(theta, dataset) - log_q).double()
    gap = ratio.logsumexp(-1) - math.log(NUM_SAMPLES) - ratio.mean(-1)
    held = estimator.model.row_log_prob(theta, held_out).logsumexp(1) - math.log(NUM_SAMPLES)
    return {"log_predictive": held.mean(-1).median().item(), "elbo": (ratio.mean(-1) / rows).mean().item(),
            "gap": gap.median().item()}


def _from_prior(estimator: Estimator, num: int, rows: int, columns: int) -> tuple[Dataset, Tensor]:
    """Datasets drawn from the shipped prior itself, where posterior intervals must cover as they say."""
    generator = generator_for(SEED + 1, rows * 1000 + columns)
    x = draw_table_inputs(num, rows, columns, generator)
    inputs = Dataset(x, None, torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(num, columns, dtype=torch.bool))
    theta = estimator.model.sample_prior(inputs, 1, generator)[:, 0]
    return estimator.model.simulate(theta, inputs, generator), theta


def _coverage(estimator: Estimator, dataset: Dataset, theta: Tensor) -> float:
    """Share of parameters inside their central posterior interval; of a network, whose hidden units can trade places,
    of its outputs at the dataset's rows instead."""
    draws = estimator.distribution(dataset).rsample(NUM_SAMPLES, generator_for(SEED))
    if estimator.model.exchangeable_axes:
        draws, theta = (_outputs(estimator, values, dataset) for values in (draws, theta[:, None]))
        theta = theta[:, 0]
    low, high = torch.quantile(draws, torch.tensor([0.5 - LEVEL / 2, 0.5 + LEVEL / 2]), dim=1)
    return ((low <= theta) & (theta <= high)).double().mean().item()


def _outputs(estimator: Estimator, theta: Tensor, dataset: Dataset) -> Tensor:
    """(B, S, N) expected y, or probability of the second label, at the first rows."""
    predicted: Any = estimator.model.predict(theta, _rows(dataset, slice(None, HELD_OUT)))
    return predicted.probs[..., 1] if estimator.model.target == "class" else predicted.mean


def _rows(dataset: Dataset, rows: slice) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, rows]
    return Dataset(dataset.x[:, rows], y, dataset.observed[:, rows], dataset.features)


def write_card(name: str, folder: Path) -> None:
    """Measure the estimator in a folder and write its card beside it."""
    estimator = Estimator.load(folder)
    cells = measure(estimator)
    parts = [_about(CARDS[name]), _training(name, estimator, folder), _quality(cells)]
    (folder / "card.md").write_text("\n".join(parts))


def _about(card: Card) -> str:
    return f"# {card.title}\n\n{card.model}\n\n## Prior\n\n{card.prior}\n"


def _training(name: str, estimator: Estimator, folder: Path) -> str:
    record: Any = estimator.info.training
    (low_n, high_n), (low_d, high_d) = estimator.info.rows, estimator.info.columns
    machine, result = record["machine"], record["result"]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    weights, density = sum(p.numel() for p in estimator.parameters()), estimator.density_part.name
    return f"""## Training

    python scripts/train_shipped.py --minutes {record["minutes"]:g} --seed {record["seed"]} {name}

- Task `standardised`: {low_n} to {high_n:,} rows (log-uniform), {low_d} to {high_d} features; columns that share random
  factors; normal, skewed (lognormal), heavy-tailed (sinh), counts and 0/1; values up to 40 sd out; effects
  shrunk by a random factor of 0.03 to 1; x standardised, and y where it is real. Reverse KL does not need
  the generating parameters, so the target is the posterior of the standardised data.
- Encoder `{estimator.encoder_part.name}`, density `{density}` ({_DENSITIES[density]} over
  unconstrained parameters): {weights:,} weights, {size:.1f} MB.
- {result["step"]:,.0f} steps of up to {record["batch_size"]} datasets in {result["elapsed_seconds"] / 60:.1f} minutes;
  {result["skipped"]:.0f} steps skipped; seed {record["seed"]}.
- Machine: {machine["processor"]}, {machine["threads"]} threads, torch {machine["torch"]}.
"""


_DENSITIES = {"full": "a Gaussian with full covariance",
              "low_rank": "a Gaussian whose covariance is diagonal plus low rank"}
_HEAD = f"""## Quality by rows (n) and features (d)

On datasets that were not trained on; *untrained* is the same network before training, which is the search of the
iterative encoder alone.

- *log predictive*: nats per held-out row, median over datasets (held-out rows reach far outside a small dataset).
- *bound*: evidence lower bound of trained minus untrained, nats per row, mean over datasets; positive is better.
- *gap*: median over datasets of log evidence (by importance weighting, {NUM_SAMPLES} draws) minus the bound, nats: an
  estimate, from below, of KL(q || posterior).
- *coverage*: share of parameters (of networks: of outputs at rows) inside their central {LEVEL:.0%} interval, on
  datasets whose parameters come from the prior itself; there y is not standardised, and at large d lies far outside
  what was trained on.

| n | d | datasets | log predictive | untrained | bound | gap | untrained | coverage | untrained |
|---|---|---|---|---|---|---|---|---|---|
"""


def _quality(cells: list[Cell]) -> str:
    return _HEAD + "\n".join(_line(cell) for cell in cells) + "\n"


def _line(cell: Cell) -> str:
    t, u = cell.trained, cell.untrained
    figures = [f"{t['log_predictive']:.3f}", f"{u['log_predictive']:.3f}", f"{t['elbo'] - u['elbo']:+.5f}",
               f"{t['gap']:.3f}", f"{u['gap']:.3f}", f"{t['coverage']:.3f}", f"{u['coverage']:.3f}"]
    return f"| {cell.rows} | {cell.columns} | {cell.datasets} | {' | '.join(figures)} |"


def main() -> None:
    """Cards of the named estimators, by default of all."""
    for name in sys.argv[1:] or shipped.shipped_names():
        write_card(name, Path(shipped.__file__).parent / name)


if __name__ == "__main__":
    main()
