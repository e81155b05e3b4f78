"""Checkpoints: what was saved comes back, and what is damaged or foreign is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posteria.errors import CheckpointError, InputError
from posteria.training.checkpoint import Checkpoint, load_optimizer, optimizer_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    tensors = {"weights": {"a.b": torch.arange(6.0).reshape(2, 3).T, "flag": torch.tensor(True)},
               "guard": {"row": torch.tensor(3), "empty": torch.zeros(0)}}
    Checkpoint(7, 1.5, {"seed": 0, "encoder": {"name": "x"}}, tensors).save(path)
    return path


def test_round_trip(path: Path) -> None:
    loaded = Checkpoint.load(path)
    assert (loaded.step, loaded.elapsed, loaded.description["encoder"]) == (7, 1.5, {"name": "x"})
    assert torch.equal(loaded.tensors["weights"]["a.b"], torch.arange(6.0).reshape(2, 3).T)
    assert loaded.tensors["guard"]["row"].item() == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_cut_files_are_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=path.name):
        Checkpoint.load(path)


def test_altered_tensors_are_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        Checkpoint.load(path)


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x80\x04\x95" + b"x" * 40])
def test_foreign_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a usable training checkpoint"):
        Checkpoint.load(path)


def test_foreign_safetensors_are_refused(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no posteria header"):
        Checkpoint.load(path)


@pytest.mark.parametrize(("header", "says"), [
    ({"format": "posteria-training/0"}, "format is 'posteria-training/0'"),
    ({"format": "posteria-training/1"}, "lacks"),
])
def test_other_formats_are_refused(path: Path, header: dict[str, str], says: str) -> None:
    save_file({"a": torch.zeros(1)}, path, {"posteria": json.dumps(header)})
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.load(path)


def test_differences_are_named(path: Path) -> None:
    loaded = Checkpoint.load(path)
    loaded.check_description({"seed": 0, "encoder": {"name": "x"}})
    loaded.check_description({"seed": 1, "encoder": {"name": "x"}}, frozenset({"seed"}))
    with pytest.raises(InputError, match=r"encoder\.name was 'x' and is now 'y'; seed was 0 and is now 'absent'"):
        loaded.check_description({"encoder": {"name": "y"}})


def test_optimizer_round_trip() -> None:
    def stepped(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, times: int) -> None:
        for _ in range(times):
            weight.grad = weight.detach() * 2 + 1
            optimizer.step()

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    stepped(weight, optimizer, 3)
    copy = torch.nn.Parameter(weight.detach().clone())
    other = torch.optim.AdamW([copy], lr=0.1, fused=True)
    load_optimizer(other, {k: v.clone() for k, v in optimizer_tensors(optimizer).items()})
    stepped(weight, optimizer, 2)
    stepped(copy, other, 2)
    assert torch.equal(weight, copy)
