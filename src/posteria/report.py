"""A report that a person opens in a browser: one HTML file with tables and plots in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from posteria import plots
from posteria.posterior import Posterior
from posteria.tables import TableCodec

_MOST_ROWS = 300
_DPI = 110


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on how to read it, and a table or a figure."""

    title: str
    text: str
    table: pd.DataFrame | None = None
    figure: Figure | None = None


@dataclass(frozen=True)
class Report:
    """Everything on the page, in order.

    Attributes:
        title: heading of the page.
        facts: (name, value) pairs: what was computed, from what.
        notes: warnings, shown ahead of the results.
        sections: tables and figures.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The page; self-contained, everything from outside escaped."""
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
        sections = [{"title": s.title, "text": s.text, "table": s.table is not None and _cells(s.table),
                     "image": s.figure is not None and _png(s.figure)} for s in self.sections]
        return template.render(title=self.title, facts=self.facts, notes=self.notes, sections=sections)

    def save(self, path: str | Path) -> None:
        """Write the page."""
        Path(path).write_text(self.html(), encoding="utf-8")


def posterior_report(posterior: Posterior, summary: pd.DataFrame, units: pd.DataFrame | None = None,
                     codec: TableCodec | None = None, title: str = "Posterior",
                     facts: Sequence[tuple[str, str]] = (), notes: Sequence[str] = ()) -> Report:
    """The report of one dataset's posterior.

    Args:
        posterior: of one dataset, with readable names.
        summary: its summary, in the scale of the estimator.
        units: the summary in the user's own units, where there is one.
        codec: brings predictions to the user's units.
        title, facts, notes: see :class:`Report`.
    """
    sections = []
    if units is not None:
        sections.append(Section("Parameters in your units", "For the columns as they are in your table.", units))
    sections += [
        Section("Parameters", "As the model has them: numeric columns standardised to mean 0 and sd 1"
                              + (", and so is the target." if posterior.model.target == "real" else "."), summary),
        Section("Marginals", "Each line is one parameter; zero is dotted.", figure=plots.marginals(posterior)),
        Section("Pairs", "A slanted cloud means that the data fix a combination of the two better than each alone.",
                figure=plots.pairs(posterior)),
        Section("Predictions", _READING[posterior.model.target], figure=plots.predictive(posterior, codec=codec)),
    ]
    return Report(title, facts, notes, sections)


_READING = {
    "real": "Predictive intervals include both noise and uncertainty about the parameters.",
    "count": "Predictive intervals include both noise and uncertainty about the parameters.",
    "positive": "Predictive intervals include both noise and uncertainty about the parameters.",
    "class": "Points on the diagonal: events predicted with probability p happen in a fraction p of the rows. "
             "These rows were also used for the fit, so expect somewhat worse on new ones.",
    "none": "Data drawn from the predictive should look like yours.",
}


def _cells(table: pd.DataFrame) -> dict[str, object]:
    rows = [[str(name), *(value if isinstance(value, str) else f"{value:.4g}" for value in row)]
            for name, row in zip(table.index[:_MOST_ROWS], table.to_numpy()[:_MOST_ROWS], strict=True)]
    more = f"The first {_MOST_ROWS} of {len(table)} parameters." if len(table) > _MOST_ROWS else ""
    return {"head": ["parameter", *map(str, table.columns)], "rows": rows, "more": more}


def _png(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return base64.b64encode(data.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2530; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { color: #4a5462; margin: .3rem 0 .8rem; }
dl { display: grid; grid-template-columns: max-content auto; gap: .15rem 1rem; }
dt { color: #4a5462; } dd { margin: 0; }
.notes { background: #fdf3e3; border-left: 4px solid #d9822b; padding: .6rem 1rem; }
.notes p { color: inherit; margin: .2rem 0; }
.scroll { max-height: 32rem; overflow: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #e4e7eb; }
th { position: sticky; top: 0; background: #fff; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if facts %}
<dl>
{% for name, value in facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% endif %}
{% if notes %}
<div class="notes">
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
</div>
{% endif %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
{% if section.table %}
<div class="scroll"><table>
<tr>{% for name in section.table.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p>{{ section.table.more }}</p>
{% endif %}
{% if section.image %}
<img alt="{{ section.title }}" src="data:image/png;base64,{{ section.image }}">
{% endif %}
{% endfor %}
</body>
</html>
"""
