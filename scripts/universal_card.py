"""Write the model card of the universal network from its record and from the report of its bench.

    python scripts/universal_card.py [--reports benchmarks/paper/reports]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from posteria import shipped
from posteria.bench.plain_report import markdown_table
from posteria.estimator import DESCRIPTION, WEIGHTS
from posteria.every_model import NAME
from posteria.tasks.many_models import FAMILIES

FOLDER = Path(shipped.__file__).parent / NAME
REPORTS = Path("benchmarks/paper/reports")
_SHOWN = ["family", "condition", "network", "parameters", "passed", "with refinement", "ESS", "gap", "± gap", "seconds"]

_CARD = """# universal: one network for every model

Takes any model with a likelihood, under any prior, and gives a posterior without training. It sees the log joint in
prior-whitened parameters: values, gradients, curvature, and the shape along every parameter's line; it is told nothing
of the model. The density is a Gaussian copula with skewed, light- or heavy-tailed marginals: one mode; a mixture of two
searches where components or hidden units can be swapped, and where a prior has heavy tails; with hidden units optimised
dataset by dataset in the end, 400 steps of Adam. In generalized linear models of one output, and without parameters of
their own, answers that are far from normal take observations as they are, as many as there are parameters.

## Training

    python scripts/train_universal.py --minutes {minutes:g} --seed {seed} --threads 1

- Task `many_models`: every batch has a model, priors, sizes and a kind of features of its own. Families:
  {families};
  priors normal, Laplace, Student-t, half-normal and log-normal, of widths over a factor of up to 100, half of them
  shrunk by the root of the number of features; 4 to 2,000 rows and 1 to 64 features; independent, correlated,
  heavy-tailed and binary features.
- Encoder `iterative` (shared tokens, lines), density `skewed`, both in parameters in which priors are standard normal
  (`whiten`), reverse KL: {weights:,} bytes. Standard deviations are {wider:g} times those of training, which bounds
  importance weights at a small cost in the bound.
- {steps} steps of 32 datasets; seed {seed}. Machine: {machine}, with other work beside.

## Quality

    posteria bench universal --scale laptop

*passed*: share of datasets with Pareto k-hat below 0.7; *with refinement*: or with that of a proposal of their own;
*ESS*: effective draws of 1,000; *gap*: nats per observation by which 500 steps of Adam, dataset by dataset, better the
evidence lower bound. *trained*: as in training; *beyond*: 200 features and 5,000 rows; *held_out*: families that
it never saw. Cells whose network is *earlier* were made by the weights shipped before, without `whiten` and `wider`.

{table}

All families of training together, by rows, features, and the prior of the first parameter:

{by_size}

## Where it fails

- Networks and mixtures have many modes, and this density has one (`modes=4` mixes several).
- Few rows and an inferred noise scale (fewer rows than parameters): the gap is largest there.
- Hierarchical models whose groups are well informed: the offsets are relative to the scale, and a Gaussian does not
  follow that ridge.
- More than 512 parameters: correlations are its own guess.

Every one of them is visible: `posterior.diagnose()` and `posterior.refine()` say so, and mend what they can.
"""


def main() -> None:
    """Write card.md."""
    parser = argparse.ArgumentParser(description="Write the universal network's card.")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    reports = parser.parse_args().reports
    description = json.loads((FOLDER / DESCRIPTION).read_text())
    training = description["info"]["training"]
    table = pd.read_csv(reports / "universal_laptop.csv")[_SHOWN]
    by_size = pd.read_csv(reports / "universal_sizes_laptop.csv")
    card = _CARD.format(minutes=training["minutes"], seed=training["seed"], steps=_steps(training),
                        weights=(FOLDER / WEIGHTS).stat().st_size, machine=_machine(training["machine"]),
                        families=", ".join(FAMILIES), wider=description["density"]["options"]["wider"],
                        table="\n".join(markdown_table(table)), by_size="\n".join(markdown_table(by_size)))
    (FOLDER / "card.md").write_text(card)
    print(f"wrote {FOLDER / 'card.md'}")


def _steps(training: dict[str, dict[str, float]]) -> str:
    return f"{training['result']['step']:.0f}"


def _machine(machine: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items() if name in ("processor", "threads", "torch"))


if __name__ == "__main__":
    main()
