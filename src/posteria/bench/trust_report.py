"""The report of `posteria bench trust`: the goals with yes or no, and a table per condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from posteria.bench.plain_report import markdown_table
from posteria.bench.scales import Scale
from posteria.bench.store import Result, ResultStore
from posteria.bench.trust_bench import BENCH, BROKEN, SIZES
from posteria.bench.trust_broken import FAULTS
from posteria.bench.trust_cases import CASES
from posteria.bench.trust_shifts import IN_DISTRIBUTION, SHIFTS

if TYPE_CHECKING:
    import pandas as pd

SMALL = 30
_LEAST_CHEAP, _LEAST_ACCURATE, _MOST_WRONG, _LEAST_RATIO = 0.9, 0.95, 0.01, 10.0
_INTRODUCTION = """\
Every cell: fresh datasets, the estimator's posterior, `refine(num_draws={num_draws})`; then the answer's means and sds
against the exact posterior, or against chains of HMC that converged: {min_ess:.0f} effective draws, bulk and tail, of
everything that is compared (datasets without are left out, column *no reference*). Networks in distribution, with 8
rows and with data of another model: against importance sampling from the prior, output weights integrated out, with as
many effective draws, and chains where these are too few; under the other shifts against chains of their own moves,
where there is a trusted answer to compare. Mixtures, and under shifts Poisson regression and linear classification 2D:
against importance sampling from mixtures that are fitted to the posterior, four times as many effective draws. Mixtures
are compared with their components in order along the data's widest direction, networks by predictions at eight fixed
inputs: no relabelling changes these.

- *accurate*: of the trusted answers, those with every mean within 0.1 sd and every ratio of sds within 0.9 to 1.1. The
  {num_draws} draws of an answer and those of a reference have errors of their own ({draw_error:.2f} sd per mean from
  the draws alone), which count against the ladder here; *up to chance* allows three standard errors for both, and is
  not what goals are judged by.
- *wrong*: answers with a mean off by more than 0.25 sd. *q wrong*: the same of q before the ladder; *kept*: how many of
  those the ladder left as they were.
- Seconds are per dataset, in one process, the network included. NUTS is NumPyro's, {nuts}, not
  repeated where it did not converge, without compilation, in distribution: the median over the first {num_nuts}
  datasets, on the same machine in the same run."""
_COLUMNS: Mapping[str, str] = {
    "datasets": "datasets", "share_amortized": "amortized", "share_reweighted": "reweighted",
    "share_refined": "refined", "share_mcmc": "mcmc", "share_failed": "failed", "trusted_accurate": "accurate",
    "trusted_accurate_up_to_chance": "up to chance", "median_error": "median error",
    "worst_trusted_error": "worst trusted", "wrong": "wrong", "wrong_trusted": "wrong, trusted", "q_wrong": "q wrong",
    "q_wrong_kept": "kept", "no_reference": "no reference", "seconds_per_dataset": "ladder s",
    "nuts_seconds_per_dataset": "NUTS s",
}
_BROKEN_COLUMNS = ("datasets", "caught", "failed", "trusted", "trusted_accurate", "trusted_wrong")


@dataclass(frozen=True)
class Verdict:
    """Whether a goal is reached.

    Attributes:
        goal: in words.
        reached: None where nothing was measured.
        missing: results that are not there yet: the verdict is on a part.
        detail: by how much it is reached or missed, and where.
    """

    goal: str
    reached: bool | None
    missing: int
    detail: str

    @property
    def line(self) -> str:
        """As a list item."""
        if self.reached is None:
            return f"- {self.goal}: not measured."
        words = ("yes so far" if self.missing else "yes") if self.reached else "**no**"
        rest = f" {self.missing} more cells have nothing to say yet." if self.missing else ""
        return f"- {self.goal}: {words}. {self.detail}{rest}"


# -- goals ------------------------------------------------------------------------------------------
def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """The goals, judged by the results of one scale."""
    cells = [r for r in results if r.setup != BROKEN]
    inside = [r for r in cells if r.method == IN_DISTRIBUTION]
    outside = [r for r in cells if r.method != IN_DISTRIBUTION]
    small = [r for r in inside if int(r.record["parameters"]) <= SMALL]
    unknown = len(CASES) - len(inside)
    left = sum(CASES[case].columns >= shift.least_features for case in CASES for shift in SHIFTS.values())
    rest = left - len(CASES) - len(outside)
    accurate = f"at least {_LEAST_ACCURATE:.0%} of the trusted answers are accurate"
    return [
        _each(f"In distribution, at least {_LEAST_CHEAP:.0%} end on the first two rungs, for models with at most "
              f"{SMALL} parameters", small, _cheap, lambda share: share >= _LEAST_CHEAP, unknown),
        _each(f"In distribution, {accurate}", inside, _figure("trusted_accurate"), _is_accurate, unknown),
        _each(f"Under shifts, {accurate}", outside, _figure("trusted_accurate"), _is_accurate, rest),
        _each(f"Under shifts, at most {_MOST_WRONG:.0%} of the datasets have a wrong answer with a trusted label",
              outside, _wrongly_trusted, lambda share: share <= _MOST_WRONG, rest),
        _each(f"Under shifts, at most {_MOST_WRONG:.0%} of the datasets for which q is wrong keep it with a trusted "
              "label", outside, _wrongly_kept, lambda share: share <= _MOST_WRONG, rest),
        _each(f"In distribution, the ladder takes at least {_LEAST_RATIO:.0f} times less time than NUTS", inside,
              _ratio, lambda ratio: ratio >= _LEAST_RATIO, unknown),
        *_on_broken([r for r in results if r.setup == BROKEN]),
    ]


Value = Callable[[Result], float]


def _each(goal: str, results: Sequence[Result], value: Value, good: Callable[[float], bool], missing: int) -> Verdict:
    """A goal that every cell must reach; cells without the figure are not counted."""
    found = {f"{r.setup} {r.method}": value(r) for r in results}
    found = {name: number for name, number in found.items() if not math.isnan(number)}
    missing += len(results) - len(found)
    if not found:
        return Verdict(goal, None, missing, "")
    bad = {name: number for name, number in found.items() if not good(number)}
    listed = "; ".join(f"{name} {number:.3g}" for name, number in (bad or found).items())
    return Verdict(goal, not bad, missing, f"{len(found) - len(bad)} of {len(found)} cells reach it"
                   + (f"; not: {listed}." if bad else "."))


def _figure(name: str) -> Value:
    def value(result: Result) -> float:
        found = result.figures.get(name, {}).get("mean")
        return math.nan if found is None else found
    return value


def _is_accurate(share: float) -> bool:
    return share >= _LEAST_ACCURATE


def _cheap(result: Result) -> float:
    return _figure("share_amortized")(result) + _figure("share_reweighted")(result)


def _wrongly_trusted(result: Result) -> float:
    checked = _figure("datasets")(result) - _figure("no_reference")(result)
    return _figure("wrong_trusted")(result) / checked if checked else math.nan


def _wrongly_kept(result: Result) -> float:
    wrong = _figure("q_wrong")(result)
    return _figure("q_wrong_kept")(result) / wrong if wrong else 0.0


def _ratio(result: Result) -> float:
    return _figure("nuts_seconds_per_dataset")(result) / _figure("seconds_per_dataset")(result)


def _on_broken(results: Sequence[Result]) -> list[Verdict]:
    known = {r.method: r for r in results}
    found = []
    for name, fault in FAULTS.items():
        result = known.get(name)
        share = math.nan if result is None else _figure("caught")(result)
        reached = None if math.isnan(share) else share == 1.0
        found.append(Verdict(f"Caught: a posterior that is {fault.title}", reached, 0,
                             "" if result is None else f"{share:.0%} caught."))
    return found


# -- tables ------------------------------------------------------------------------------------------
def write_trust_report(scale: Scale, store: ResultStore, folder: Path) -> list[Path]:
    """Write ``trust_<scale>.md`` and ``.csv``; returns their paths."""
    results = [r for r in store.results() if r.bench == BENCH and r.scale == scale.name]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"trust_{scale.name}.{ending}" for ending in ("md", "csv")]
    text = ["# Can the label be trusted?", "", f"    posteria bench trust --scale {scale.name}", "",
            _introduction(scale), "", "## Goals", "", *(verdict.line for verdict in verdicts(results))]
    for name, shift in SHIFTS.items():
        text += _section(f"{shift.title} (`{name}`)", _table([r for r in results if r.method == name]))
    text += _section("Posteriors that are wrong on purpose", _broken_table([r for r in results if r.setup == BROKEN]))
    paths[0].write_text("\n".join(text) + "\n", encoding="utf-8")
    _long(results).to_csv(paths[1], index=False, float_format="%.6g")
    return paths


def _introduction(scale: Scale) -> str:
    sizes = SIZES[scale.name]
    nuts = f"{sizes.nuts['num_chains']} chains of {sizes.nuts['num_warmup']} + {sizes.nuts['num_samples']} transitions"
    return _INTRODUCTION.format(num_draws=sizes.num_draws, min_ess=sizes.min_ess, draw_error=sizes.num_draws**-0.5,
                                nuts=nuts, num_nuts=sizes.num_nuts)


def _section(title: str, table: pd.DataFrame) -> list[str]:
    return ["", f"## {title}", "", *(markdown_table(table) if len(table) else ["Not measured."])]


def _table(results: Sequence[Result]) -> pd.DataFrame:
    import pandas as pd

    order = {name: i for i, name in enumerate(CASES)}
    mine = sorted((r for r in results if r.setup in order), key=lambda r: order[r.setup])
    return pd.DataFrame([{"case": r.setup, "parameters": r.record["parameters"],
                          **{title: _figure(name)(r) for name, title in _COLUMNS.items()},
                          "NUTS / ladder": _ratio(r)} for r in mine])


def _broken_table(results: Sequence[Result]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{"q": FAULTS[r.method].title, **{name: _figure(name)(r) for name in _BROKEN_COLUMNS}}
                         for r in sorted(results, key=lambda r: list(FAULTS).index(r.method))])


def _long(results: Sequence[Result]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{"case": r.setup, "condition": r.method, "figure": name, "value": values["mean"],
                          "exact": r.record.get("exact"), "finished": r.finished}
                         for r in results for name, values in r.figures.items()],
                        columns=["case", "condition", "figure", "value", "exact", "finished"])
