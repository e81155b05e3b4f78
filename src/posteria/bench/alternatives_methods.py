"""The registry of `posteria bench alternatives`: methods, what they need, and what they may spend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

from posteria.bench.alternatives_answers import Solver
from posteria.errors import UnsupportedError

Budget = Mapping[str, int]
EXTRA = "alternatives"
OURS = "posteria"


@dataclass(frozen=True)
class Alternative:
    """One way from a model and data to posterior means and sds.

    Attributes:
        place: module of this package and function in it that makes the solver: (model, **budget).
        needs: what a user of the method imports before anything else.
        batched: takes many datasets at once; otherwise one after the other.
        budgets: settings, the cheapest first; the next one is tried where the last one is not accurate.
        says: what it is, for the report.
    """

    place: tuple[str, str]
    needs: tuple[str, ...]
    says: str
    batched: bool = False
    budgets: tuple[Budget, ...] = ({"draws": 1000}, {"draws": 4000})

    @property
    def missing(self) -> tuple[str, ...]:
        """What it needs and is not installed."""
        return tuple(name for name in self.needs if find_spec(name) is None)

    @property
    def versions(self) -> dict[str, str]:
        """Of what it needs."""
        return {name: version(name) for name in self.needs}

    @property
    def builder(self) -> Callable[..., Solver]:
        """The function at ``place``; imports what it needs.

        Raises:
            UnsupportedError: something is not installed.
        """
        if self.missing:
            raise UnsupportedError.of("method", f"one that needs {', '.join(self.missing)}",
                                      f"an environment with it: pip install posteria[{EXTRA}]")
        module, name = self.place
        return getattr(import_module(f"posteria.bench.{module}"), name)


_OURS, _JAX, _NUTS = "alternatives_ours", "alternatives_jax", "alternatives_nuts"
_CHAINS: tuple[Budget, ...] = ({"warmup": 250, "draws": 250}, {"warmup": 500, "draws": 500},
                               {"warmup": 1000, "draws": 1000})
METHODS: Mapping[str, Alternative] = {
    OURS: Alternative((_OURS, "build_posteria"), ("torch", "arviz"),
                      "the universal network and the whole trust ladder", batched=True),
    "posteria_raw": Alternative((_OURS, "build_posteria_raw"), ("torch",), "the universal network alone, unchecked",
                                batched=True),
    "posteria_weighted": Alternative((_OURS, "build_posteria_weighted"), ("torch", "arviz"),
                                     "the universal network with importance weights", batched=True),
    "batched_laplace": Alternative((_OURS, "build_batched_laplace"), ("torch",),
                                   "our Laplace approximation, all datasets at once, unchecked", batched=True),
    "batched_laplace_psis": Alternative((_OURS, "build_batched_laplace_psis"), ("torch", "arviz"),
                                        "the same with importance weights", batched=True),
    "laplace_psis": Alternative((_JAX, "build_laplace"), ("jax", "scipy", "arviz"),
                                "SciPy's BFGS and the Hessian by JAX, with importance weights"),
    "pathfinder_psis": Alternative((_JAX, "build_pathfinder"), ("jax", "blackjax", "arviz"),
                                   "BlackJAX's multi-path Pathfinder with importance weights",
                                   budgets=({"paths": 4, "draws": 1000}, {"paths": 16, "draws": 1000})),
    "advi": Alternative((_JAX, "build_advi"), ("jax", "numpyro"), "NumPyro's mean-field normal guide",
                        budgets=({"steps": 1000}, {"steps": 4000}, {"steps": 16000})),
    "nuts_numpyro": Alternative((_NUTS, "build_numpyro"), ("jax", "numpyro"), "NumPyro's NUTS, 4 chains",
                                budgets=_CHAINS),
    "nuts_nutpie": Alternative((_NUTS, "build_nutpie"), ("jax", "nutpie"),
                               "nutpie's NUTS, 4 chains, on a Python function that JAX has compiled", budgets=_CHAINS),
}


def unavailable() -> dict[str, str]:
    """Why methods cannot run here: name -> what is missing."""
    return {name: f"needs {', '.join(method.missing)}: pip install posteria[{EXTRA}]"
            for name, method in METHODS.items() if method.missing}
