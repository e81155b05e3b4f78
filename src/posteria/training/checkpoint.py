"""Training checkpoints: one safetensors file with a JSON header, written so that a kill leaves the old one or the new.

The file's tensors are named ``weights/...``, ``average/...``, ``optimizer/<index>/...`` and so on;
its header says where training stood. Nothing is ever pickled.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from posteria.errors import CheckpointError, InputError, TrainingError
from posteria.files import write_atomically

FORMAT = "posteria-training/1"
_HEADER_KEY = "posteria"
_FIELDS = {"format", "description", "step", "elapsed", "checksum"}


@dataclass
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        step: steps taken.
        elapsed: seconds of training so far, over all sittings.
        description: JSON values that say what is trained and how; a resumed run must have the same.
        tensors: by group: "weights", "average", "optimizer", "guard", "window".
    """

    step: int
    elapsed: float
    description: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, atomically.

        Raises:
            TrainingError: the disk is full, or the folder cannot be written; an earlier checkpoint stays as it was.
        """
        flat = {f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
                for group, tensors in self.tensors.items() for name, tensor in tensors.items()}
        header = {"format": FORMAT, "description": self.description, "step": self.step, "elapsed": self.elapsed,
                  "checksum": _checksum(flat)}
        data = safetensors_torch.save(flat, {_HEADER_KEY: json.dumps(header)})
        with explained_disk_errors(path):
            write_atomically(path, data)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read and check a file that :meth:`save` wrote.

        Raises:
            CheckpointError: the file is truncated or altered, or is not a training checkpoint.
        """
        data = path.read_bytes()
        header = _header(path, data)
        try:
            flat = safetensors_torch.load(data)
        except SafetensorError as error:
            raise _damaged(path, str(error)) from error
        if _checksum(flat) != header["checksum"]:
            raise _damaged(path, "its tensors do not match their checksum")
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            group, _, name = key.partition("/")
            tensors.setdefault(group, {})[name] = tensor
        return cls(header["step"], header["elapsed"], header["description"], tensors)

    def check_description(self, wanted: Mapping[str, Any], may_change: frozenset[str] = frozenset()) -> None:
        """Raise an InputError that names the fields, but for some, in which a resumed run differs from this one."""
        here, there = _leaves(self.description), _leaves(json.loads(json.dumps(wanted)))
        differ = [f"{name} was {here.get(name, 'absent')!r} and is now {there.get(name, 'absent')!r}"
                  for name in sorted({*here, *there} - may_change) if here.get(name) != there.get(name)]
        if differ:
            raise InputError.of("resume", f"a run with another configuration ({'; '.join(differ)})",
                                "the configuration that the run began with, or another folder")


@contextmanager
def explained_disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into a TrainingError that says what to do."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise TrainingError(f"cannot write {path}: {what}. What was saved before is intact: make room or rights, "
                            "then resume from the last checkpoint") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under flat names; its hyperparameters come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": value for index, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _header(path: Path, data: bytes) -> dict[str, Any]:
    # The format's first 8 bytes are the length of a JSON header, in which our own header is one string.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise _damaged(path, f"it is cut off after {len(data)} bytes, or no safetensors file")
    try:
        header = json.loads(json.loads(data[8:8 + length])["__metadata__"][_HEADER_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "it has no posteria header") from error
    if header.get("format") != FORMAT:
        raise _damaged(path, f"its format is {header.get('format')!r} and this version reads {FORMAT!r}")
    if missing := _FIELDS - set(header):
        raise _damaged(path, f"its header lacks {sorted(missing)}")
    return header


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a usable training checkpoint: {what}. Remove it to start again")


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _leaves(values: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as dotted names."""
    if not isinstance(values, Mapping) or not values:
        return {name: values}
    parts = [_leaves(value, f"{name}.{key}" if name else str(key)) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}
