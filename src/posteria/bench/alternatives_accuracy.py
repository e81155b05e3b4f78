"""When an answer of `posteria bench alternatives` counts as accurate, and the posteriors that say so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from posteria.bench.alternatives_answers import NUM_DRAWS, Answer
from posteria.bench.alternatives_cases import CASES, Sizes
from posteria.bench.samplers import Moments, parameters
from posteria.bench.store import key_of
from posteria.bench.trust_accuracy import Errors, Reference, reference_of
from posteria.bench.workspace import Workspace
from posteria.models import Model
from posteria.types import Dataset

_MOMENTS = tuple(Moments.__dataclass_fields__)
# Standard errors that are allowed for.
_ALLOWED_ERRORS = 3.0


def errors_of_answer(answer: Answer, reference: Reference) -> Errors:
    """Errors over all parameters, unconstrained.

    The allowance for chance is the same for every method: three standard errors of the reference and of 4,000
    independent draws. A method whose draws are worth fewer is allowed no more: that error is its own.

    Args:
        answer: B datasets.
        reference: of the same.
    """
    known = reference.moments
    mean = ((answer.mean - known.mean) / known.sd).abs().amax(-1).nan_to_num(torch.inf)
    ratio = answer.sd / known.sd
    doubt = (1.0 / NUM_DRAWS + (known.mean_error / known.sd).square().amax(-1)).sqrt()
    figures = (mean, ratio.amin(-1).nan_to_num(0.0), ratio.amax(-1).nan_to_num(torch.inf), _ALLOWED_ERRORS * doubt)
    return Errors(*(torch.where(reference.usable, figure, torch.nan) for figure in figures))


def known_reference(case: str, sizes: Sizes, workspace: Workspace) -> Reference:
    """The posteriors of a case's datasets: exact, or of long chains; computed once and kept in the workspace.

    Args:
        case: a key of :data:`posteria.bench.alternatives_cases.CASES`.
        sizes: of the scale.
        workspace: where references are kept.
    """
    chosen = CASES[case]
    path = _path(case, sizes, workspace)
    if not path.exists():
        _save(reference_for(chosen.model(), chosen.draw(sizes.accuracy), sizes, chosen.chains), path)
    kept = safetensors.torch.load_file(path)
    return Reference(Moments(*(kept[name] for name in _MOMENTS)), kept["usable"], bool(kept["exact"]))


def reference_for(model: Model, dataset: Dataset, sizes: Sizes, chains: Mapping[str, Any] | None = None) -> Reference:
    """The exact posterior where there is one, else long chains of Hamiltonian Monte Carlo.

    Args:
        model: the model.
        dataset: B datasets.
        sizes: of the scale.
        chains: settings in place of the scale's.
    """
    return reference_of(model, dataset, parameters, {**sizes.chains, **(chains or {})}, sizes.min_ess)


def _path(case: str, sizes: Sizes, workspace: Workspace) -> Path:
    chosen = CASES[case]
    key = key_of({"case": asdict(chosen), "datasets": sizes.accuracy, "chains": dict(sizes.chains),
                  "min_ess": sizes.min_ess})
    return workspace.references / f"alternatives-{case}-{key}.safetensors"


def _save(reference: Reference, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copies: exact moments share their zeros, which the file format does not take.
    tensors = {name: getattr(reference.moments, name).clone() for name in _MOMENTS}
    temporary = path.with_suffix(f".{os.getpid()}.new")
    safetensors.torch.save_file({**tensors, "usable": reference.usable, "exact": torch.tensor(reference.exact)},
                                temporary)
    os.replace(temporary, path)
