"""The referee: NUTS of NumPyro on log joints that are written a second time, in JAX, apart from the models in torch.

Needs the extra: ``pip install posteria[numpyro]``. Nothing else imports JAX, and neither does ``import posteria``.
"""

from __future__ import annotations

from posteria.errors import UnsupportedError

try:
    from posteria.referee.check import check_density, check_score
    from posteria.referee.densities import DENSITIES, density_of, has_own_density
    from posteria.referee.nuts import NutsDraws, NutsSampler, run_nuts
except ModuleNotFoundError as error:
    raise UnsupportedError.of("posteria.referee", f"no module named {error.name!r}",
                              "an environment with it: pip install posteria[numpyro]") from error

__all__ = [
    "DENSITIES",
    "NutsDraws",
    "NutsSampler",
    "check_density",
    "check_score",
    "density_of",
    "has_own_density",
    "run_nuts",
]
