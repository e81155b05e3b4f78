"""Where a bench keeps what it computes: trained estimators, reference draws, results."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from posteria.bench.store import ResultStore, key_of
from posteria.estimator import DESCRIPTION, Estimator
from posteria.training import TrainConfig, train
from posteria.training.run import CHECKPOINT


@dataclass(frozen=True)
class Workspace:
    """A folder with ``results.sqlite``, ``runs/`` and ``references/``.

    Attributes:
        root: the folder, made if missing.
        device: where baselines and evaluations run, and where training does with ``device="auto"``.
    """

    root: Path
    device: str = "cpu"

    @property
    def store(self) -> ResultStore:
        """The results."""
        return ResultStore(self.root / "results.sqlite")

    @property
    def references(self) -> Path:
        """Folder of reference draws."""
        return self.root / "references"

    def partial(self, key: str) -> Partial:
        """What is known already of a cell that is measured part by part."""
        return Partial(self.store, key)

    def trained(self, config: TrainConfig) -> Estimator:
        """The estimator of a configuration: loaded, or trained (from its checkpoint where there is one)."""
        folder = self.root / "runs" / key_of(config.model_dump(mode="json"))
        if not (folder / DESCRIPTION).exists():
            train(config, out=folder, resume=True, progress=False)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return Estimator.load(folder).to(self.device)


@dataclass(frozen=True)
class Partial:
    """Figures of the datasets of a cell that were measured before it is done: a killed run goes on from there.

    Attributes:
        store: where they are kept, chunk by chunk, by the number of a chunk's first.
        key: of the cell.
    """

    store: ResultStore
    key: str

    def get(self, first: int) -> dict[str, Tensor] | None:
        """Those of a chunk, if they are known."""
        content = self.store.part(self.key, first)
        return None if content is None else safetensors.torch.load(content)

    def put(self, first: int, figures: Mapping[str, Tensor]) -> None:
        """Keep those of a chunk; whole or not at all."""
        content = safetensors.torch.save({name: values.contiguous() for name, values in figures.items()})
        self.store.add_part(self.key, first, content)

    def whole(self, sizes: Mapping[int, int], measure: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Figures (B,) of all datasets.

        Args:
            sizes: how many there are in every chunk, by the number of its first. What is known of fewer, of a cell that
                was smaller, is measured anew.
            measure: the figures of a chunk that is not known.
        """
        parts = []
        for first, size in sizes.items():
            part = self.get(first)
            if part is None or any(len(values) != size for values in part.values()):
                part = measure(first)
                self.put(first, part)
            parts.append(part)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def clear(self) -> None:
        """Forget them, when nothing will be added."""
        self.store.drop_parts(self.key)


def training_record(estimator: Estimator) -> dict[str, Any]:
    """How the training of an estimator went: steps, seconds, steps skipped, number of weights."""
    result = estimator.info.training["result"]
    return {"steps": int(result["step"]), "training_seconds": round(result["elapsed_seconds"], 1),
            "skipped_steps": int(result["skipped"]), "parameters": sum(p.numel() for p in estimator.parameters())}


def machine() -> dict[str, Any]:
    """What a result was computed with."""
    from posteria import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"posteria": __version__, "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads(), "cores": cores, "processor": _processor(), "accelerator": accelerator}


def now() -> str:
    """UTC time to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
