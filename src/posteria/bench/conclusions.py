"""The paper's conclusions, each weighed on the results there are: confirmed, refuted or not yet decided.

A comparison is one setup with everything equal but what is compared. It counts as won or lost where the difference is
more than two combined standard errors. A conclusion is confirmed where at least half of its comparisons are won and
four times as many are won as lost; refuted the other way round; and otherwise not yet decided. That something changes
little is confirmed where at least half are neither won nor lost. Flows are weighed where posteriors are not Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from posteria.bench.methods import DENSITIES, OBJECTIVES, Trained
from posteria.bench.report import HIGHER_IS_BETTER, Entry, main_figure, over_seeds
from posteria.bench.setups import SETUPS, Setup
from posteria.bench.store import Result, ResultStore

_CLEAR = 2.0
_ENOUGH, _RATIO = 0.5, 4.0
_PAPER_ENCODERS = ("gru", "deepsets", "transformer")
_ITERATIVE = ("iterative",)
_Pair = tuple[Trained, Trained]
_PROPER = "log_predictive"
_COVERS = 80.0
_GAUSSIAN_POSTERIORS = ("gaussian_mean", "linear_regression")


@dataclass(frozen=True)
class Comparison:
    """Two methods on a setup; ``score`` > 0 where the first is better, in combined standard errors."""

    setup: str
    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Weighed:
    """A conclusion and what the comparisons say."""

    text: str
    verdict: str
    won: int
    lost: int
    drawn: int
    detail: str

    @property
    def sentence(self) -> str:
        """One sentence with the numbers."""
        total = self.won + self.lost + self.drawn
        counts = f"{self.won} of {total} comparisons clearly for, {self.lost} clearly against"
        return f"{self.text}: **{self.verdict}** ({counts}{self.detail})."


def weigh_all(store: ResultStore, scale: str, bench: str = "paper") -> list[Weighed]:
    """Every conclusion, for the paper's encoders and for the iterative one."""
    results = [r for r in store.results() if r.bench == bench and r.scale == scale]
    return [conclusion.weigh(results) for conclusion in _conclusions()] + _labellings(results)


def conclusions_markdown(store: ResultStore, scale: str) -> str:
    """All sentences as Markdown."""
    lines = [f"# The paper's conclusions at scale `{scale}`", "", *(__doc__ or "").strip().splitlines()[2:], "",
             *(f"- {weighed.sentence}" for weighed in weigh_all(store, scale))]
    return "\n".join(lines) + "\n"


def _verdict(won: int, lost: int, drawn: int) -> str:
    total = won + lost + drawn
    if total and won >= _ENOUGH * total and won >= _RATIO * lost:
        return "confirmed"
    if total and lost >= _ENOUGH * total and lost >= _RATIO * won:
        return "refuted"
    return "not yet decided"


def _verdict_of_little(won: int, lost: int, drawn: int) -> str:
    total = won + lost + drawn
    if not total:
        return "not yet decided"
    return "confirmed" if drawn >= _ENOUGH * total else "refuted"


@dataclass(frozen=True)
class _Conclusion:
    """A statement, the pairs of methods that bear on it, and where."""

    text: str
    pairs: Sequence[_Pair]
    where: Callable[[Setup], bool] = lambda setup: True
    judge: Callable[[int, int, int], str] = _verdict

    def weigh(self, results: Sequence[Result]) -> Weighed:
        """Count the comparisons, by the paper's figure and by log predictive density."""
        here = [r for r in results if r.setup in SETUPS and self.where(SETUPS[r.setup])]
        main = list(_comparisons(self.pairs, here, lambda setup: main_figure(1, SETUPS[setup])))
        proper = list(_comparisons(self.pairs, here, lambda setup: _PROPER))
        won, lost, drawn = _counts(main)
        lost_on = sorted({c.setup for c in main if c.score < -_CLEAR})
        also = "{} for and {} against by log predictive density".format(*_counts(proper)[:2])
        detail = f"; {also}" + (f"; against on {', '.join(lost_on)}" if lost_on else "")
        return Weighed(self.text, self.judge(won, lost, drawn), won, lost, drawn, detail)


def _conclusions() -> Iterator[_Conclusion]:
    for name, encoders in (("the paper's encoders", _PAPER_ENCODERS), ("the iterative encoder", _ITERATIVE)):
        yield _Conclusion(f"Reverse KL predicts better than forward KL ({name})", [
            (Trained("reverse_kl", d, e), Trained("forward_kl", d, e)) for d in DENSITIES for e in encoders])
        yield _Conclusion(f"A flow predicts better than a Gaussian under forward KL ({name})",
                          _flow_pairs("forward_kl", encoders), _is_not_gaussian)
        yield _Conclusion(f"Under reverse KL a flow in place of a Gaussian changes little ({name})",
                          _flow_pairs("reverse_kl", encoders), _is_not_gaussian, _verdict_of_little)
    for better, worse in (("transformer", "gru"), ("gru", "deepsets"), ("iterative", "transformer")):
        yield _Conclusion(f"The encoder {better} predicts better than {worse}", [
            (Trained(o, d, better), Trained(o, d, worse)) for o in OBJECTIVES for d in DENSITIES])


def _flow_pairs(objective: str, encoders: Sequence[str]) -> list[_Pair]:
    return [(Trained(objective, "flow", e), Trained(objective, "gaussian", e)) for e in encoders]


def _is_not_gaussian(setup: Setup) -> bool:
    return setup.task not in _GAUSSIAN_POSTERIORS


def _comparisons(pairs: Sequence[_Pair], results: Sequence[Result], figure_of: Callable[[str], str]) -> (
        Iterator[Comparison]):
    for setup in dict.fromkeys(r.setup for r in results):
        figure = figure_of(setup)
        for first, second in pairs:
            a, b = (over_seeds([r for r in results if r.setup == setup and r.method == m.key], figure)
                    for m in (first, second))
            if math.isfinite(a.mean) and math.isfinite(b.mean):
                yield Comparison(setup, first.key, second.key, _score(a, b, figure))


def _score(first: Entry, second: Entry, figure: str) -> float:
    sign = 1.0 if figure in HIGHER_IS_BETTER else -1.0
    error = math.hypot(first.error, second.error)
    return sign * (first.mean - second.mean) / error if error > 0 else 0.0


def _counts(comparisons: Sequence[Comparison]) -> tuple[int, int, int]:
    won = sum(c.score > _CLEAR for c in comparisons)
    lost = sum(c.score < -_CLEAR for c in comparisons)
    return won, lost, len(comparisons) - won - lost


def _labellings(results: Sequence[Result]) -> list[Weighed]:
    """Forward KL with a flow covers a mixture's labellings, and reverse KL does not."""
    found = [(r, r.figures["both_labellings"]["mean"] or 0.0) for r in results if "both_labellings" in r.figures]
    return [_covering(found, name, encoders)
            for name, encoders in (("the paper's encoders", _PAPER_ENCODERS), ("the iterative encoder", _ITERATIVE))]


def _covering(found: Sequence[tuple[Result, float]], name: str, encoders: Sequence[str]) -> Weighed:
    forward = [share for r, share in found if r.method in {f"forward_kl/flow/{e}" for e in encoders}]
    reverse = [share for r, share in found if r.method in {f"reverse_kl/{d}/{e}" for d in DENSITIES for e in encoders}]
    covering, missing = sum(share >= _COVERS for share in forward), sum(share < _COVERS for share in forward)
    detail = f"; datasets with both labellings: forward KL with a flow {_range(forward)}, reverse KL {_range(reverse)}"
    return Weighed(f"Forward KL with a flow covers a mixture's labellings ({name})", _verdict(covering, missing, 0),
                   covering, missing, 0, detail)


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):.0f} to {max(shares):.0f}%" if shares else "not run"
