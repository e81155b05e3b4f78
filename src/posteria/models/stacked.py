"""One batched torch distribution out of a function that builds it for one parameter vector and one dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily

from posteria.errors import InputError

# A distribution taken apart: its tensors, and the function that builds it from them again.
_Parts = tuple[list[Tensor], Callable[[list[Tensor]], Distribution]]

# Arguments of which a family takes one, though it may carry several; the first is the most exact.
_ALTERNATIVES = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))


@contextmanager
def without_validation() -> Iterator[None]:
    """Distributions made inside do not check values, which vmap cannot trace."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def stacked(build: Callable[..., Distribution], map_over: Callable[..., Any], *arguments: Any) -> Distribution:
    """The distribution that ``build`` makes for one set of arguments, made for all of them at once.

    ``map_over(f)`` turns a function of one set of arguments into a function of all (by vmap).
    """
    rebuild: list[Callable[[list[Tensor]], Distribution]] = []

    def tensors(*one: Any) -> list[Tensor]:
        parts, again = _take_apart(build(*one))
        rebuild.append(again)
        return parts

    with without_validation():
        values = map_over(tensors)(*arguments)
        return rebuild[0](values)


def _take_apart(distribution: Distribution) -> _Parts:
    if not isinstance(distribution, Distribution):
        raise InputError.of("predict", type(distribution).__name__, "a function that returns a torch Distribution")
    take = _NESTED.get(type(distribution), _flat)
    return take(distribution)


def _flat(distribution: Distribution) -> _Parts:
    """A family with plain tensor arguments, given by ``arg_constraints``."""
    known = list(distribution.arg_constraints)
    # Transformed families have their arguments as properties only.
    names = [n for n in known if n in distribution.__dict__] or [n for n in known if hasattr(distribution, n)]
    for alternatives in _ALTERNATIVES:
        present = [n for n in alternatives if n in names]
        names = [n for n in names if n not in present[1:]]
    if not names:
        raise InputError.of("predict", f"a {type(distribution).__name__}",
                            "a family with tensor arguments, Independent, or MixtureSameFamily")
    family: Any = type(distribution)  # whose arguments only arg_constraints knows
    values = [torch.as_tensor(getattr(distribution, n)) for n in names]
    return values, lambda stack: family(**dict(zip(names, stack, strict=True)))


def _independent(distribution: Any) -> _Parts:
    parts, again = _take_apart(distribution.base_dist)
    return parts, lambda stack: Independent(again(stack), distribution.reinterpreted_batch_ndims)


def _mixture(distribution: Any) -> _Parts:
    components = distribution.component_distribution
    which, which_again = _take_apart(distribution.mixture_distribution.expand(components.batch_shape[:-1]))
    each, each_again = _take_apart(components)
    family: Any = MixtureSameFamily
    return which + each, lambda stack: family(which_again(stack[:len(which)]), each_again(stack[len(which):]))


_NESTED: dict[type, Callable[[Any], _Parts]] = {Independent: _independent, MixtureSameFamily: _mixture}
