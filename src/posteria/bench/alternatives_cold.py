"""Seconds from a fresh process to the first answer, of one method on one dataset.

Imports, compilation and loading count, as far as a user of the method would meet them: for methods on JAX neither the
import of torch, which only holds our models, nor that of the referee's densities.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module

import torch

from posteria.bench.alternatives_cases import CASES
from posteria.bench.alternatives_methods import METHODS, Budget

_CODE = "import time; began = time.perf_counter(); from posteria.bench.alternatives_cold import main; main(began)"


def cold_seconds(case: str, method: str, budget: Budget, threads: int) -> float:
    """In a process of its own.

    Args:
        case, method: names.
        budget: of the method.
        threads: of torch.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    request = json.dumps({"case": case, "method": method, "budget": dict(budget), "threads": threads})
    done = subprocess.run([sys.executable, "-c", _CODE, request], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(began: float) -> None:
    """Of the fresh process: reads the request from the command line, and writes the seconds.

    Args:
        began: when the process did.
    """
    request = json.loads(sys.argv[1])
    method = METHODS[request["method"]]
    torch.set_num_threads(request["threads"])
    case = CASES[request["case"]]
    model, dataset = case.model(), case.draw(1)
    if "torch" not in method.needs:
        counted = _import_seconds(method.needs)
        import_module("posteria.referee")
        began = time.perf_counter() - counted
    method.builder(model, **request["budget"])(dataset, 0)
    sys.stdout.write(f"{time.perf_counter() - began}\n")


def _import_seconds(names: Sequence[str]) -> float:
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version
        for name in names:
            import_module(name)
    return time.perf_counter() - began
