"""Estimator: saving and loading, every error that it names, sizes, and labels that can be exchanged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.distributions import Exponential, Normal, constraints

from posteria import files
from posteria.densities import DENSITIES
from posteria.encoders import ENCODERS
from posteria.errors import CheckpointError, DataError, InputError, UnsupportedError
from posteria.estimator import DESCRIPTION, WEIGHTS, Estimator, EstimatorInfo
from posteria.models import MODELS, CustomModel, LinearRegression, Model, Parameter, build_model
from posteria.parts import Part
from posteria.randomness import generator_for
from posteria.types import Dataset

SMALL: dict[str, Part] = {
    "iterative": Part("iterative", {"width": 16, "widenings": 2, "layers": 2}),
    "transformer": Part("transformer", {"layers": 1, "width": 16}),
    "deepsets": Part("deepsets", {"layers": 2, "width": 16}),
    "gru": Part("gru", {"layers": 1, "width": 16}),
}
OPTIONS: dict[str, dict[str, Any]] = {"neural_regression": {"hidden": 3}, "neural_classification": {"hidden": 3}}


def make(model: Model | None = None, encoder: str = "deepsets", density: str | Part = "gaussian",
         columns: tuple[int, int] = (2, 2), seed: int = 0) -> Estimator:
    """A small estimator whose weights are moved off their start, so that all of them matter."""
    made = Estimator(model or LinearRegression(), SMALL[encoder], density, EstimatorInfo(columns, (5, 20), {"seed": 3}))
    generator = generator_for(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return made.eval()


def regression_data(columns: int = 2, rows: int = 9, batch: int = 2, seed: int = 0) -> Dataset:
    generator = generator_for(seed)
    x = torch.randn(batch, rows, columns, generator=generator)
    return Dataset.of(x, x.sum(-1) + 0.5 * torch.randn(batch, rows, generator=generator))


def simulated(model: Model, columns: int, rows: int = 9) -> Dataset:
    x = model.draw_inputs(2, rows, columns, generator_for(1))
    inputs = Dataset(x, None, torch.ones(2, rows, dtype=torch.bool), torch.ones(2, columns, dtype=torch.bool))
    return model.simulate(model.sample_prior(inputs, 1, generator_for(2))[:, 0], inputs, generator_for(3))


def outputs(estimator: Estimator, dataset: Dataset) -> tuple[Tensor, Tensor]:
    posterior = estimator.posterior(dataset)
    draws = posterior.sample_theta(5, seed=0)
    return draws, posterior.log_prob(draws)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make().save(tmp_path / "run")
    return tmp_path / "run"


# -- saving and loading --------------------------------------------------------------------------
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("density", sorted(DENSITIES))
def test_every_pair_is_bitwise_the_same_after_loading(encoder: str, density: str, tmp_path: Path) -> None:
    first, dataset = make(encoder=encoder, density=density), regression_data()
    first.save(tmp_path)
    second = Estimator.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(first, dataset), outputs(second, dataset), strict=True))
    assert second.describe() == first.describe()
    assert second.info == first.info
    assert not second.training
    assert sorted(os.listdir(tmp_path)) == sorted([DESCRIPTION, WEIGHTS])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_comes_back(name: str, tmp_path: Path) -> None:
    model = build_model(name, **OPTIONS.get(name, {}))
    first, dataset = make(model, "iterative", columns=(3, 3)), simulated(model, 3)
    first.save(tmp_path)
    second = Estimator.load(tmp_path)
    assert second.model.options() == model.options()
    assert all(torch.equal(a, b) for a, b in zip(outputs(first, dataset), outputs(second, dataset), strict=True))


def test_priors_come_back(tmp_path: Path) -> None:
    model = LinearRegression(noise="inferred", priors={"weights": Normal(0.5, 2.0), "noise_scale": Exponential(3.0)})
    make(model, "iterative").save(tmp_path)
    prior = Estimator.load(tmp_path).model.parameters[0].prior
    assert isinstance(prior, Normal)
    assert (float(prior.loc), float(prior.scale)) == (0.5, 2.0)


def test_saving_again_replaces_what_was_there(saved: Path) -> None:
    second = make(seed=1)
    second.save(saved, reference=regression_data(seed=7))
    dataset = regression_data()
    assert torch.equal(outputs(Estimator.load(saved), dataset)[1], outputs(second, dataset)[1])


def test_a_users_own_model_is_given_on_loading(tmp_path: Path) -> None:
    make(own_model(), "iterative").save(tmp_path)
    with pytest.raises(CheckpointError, match=r"user's own model.*model="):
        Estimator.load(tmp_path)
    assert Estimator.load(tmp_path, model=own_model()).model.name == "custom"
    with pytest.raises(CheckpointError, match=r"differs.*slope.*slopes"):
        Estimator.load(tmp_path, model=own_model("slopes"))


def own_model(name: str = "slope") -> CustomModel:
    def predict(params: dict[str, Tensor], x: Tensor) -> Normal:
        return Normal(x @ params[name], 0.5)

    return CustomModel([Parameter(name, ("features",))], predict=predict)


# -- what is wrong with a folder -----------------------------------------------------------------
def describe(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DESCRIPTION).read_text())


def rewrite(folder: Path, **changes: Any) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(describe(folder) | changes))


def rewrite_weights(folder: Path, data: bytes) -> None:
    """Other weights with the checksum that fits them."""
    (folder / WEIGHTS).write_bytes(data)
    rewrite(folder, sha256=hashlib.sha256(data).hexdigest())


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*no such file; takes a directory"):
        Estimator.load(tmp_path / "nowhere")


def test_missing_weights(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors: no such file"):
        Estimator.load(saved)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\x00", b""])
def test_description_that_is_not_json(saved: Path, text: bytes) -> None:
    (saved / DESCRIPTION).write_bytes(text)
    with pytest.raises(CheckpointError, match="not JSON"):
        Estimator.load(saved)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": "something else"}'])
def test_description_of_something_else(saved: Path, text: str) -> None:
    (saved / DESCRIPTION).write_text(text)
    with pytest.raises(CheckpointError, match="not an estimator of posteria"):
        Estimator.load(saved)


@pytest.mark.parametrize("key", ["format_version", "model", "encoder", "density", "info", "signature", "sha256"])
def test_description_that_lacks_something(saved: Path, key: str) -> None:
    description = describe(saved)
    del description[key]
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=key):
        Estimator.load(saved)


def test_newer_format(saved: Path) -> None:
    rewrite(saved, format_version=99)
    with pytest.raises(CheckpointError, match=r"format 99, newer than 1; takes a newer posteria"):
        Estimator.load(saved)


@pytest.mark.parametrize("kept", [0, 4, 200, -10])
def test_truncated_weights(saved: Path, kept: int) -> None:
    data = (saved / WEIGHTS).read_bytes()
    rewrite_weights(saved, data[:kept])
    with pytest.raises(CheckpointError, match="corrupt or not safetensors"):
        Estimator.load(saved)


def test_foreign_file_in_place_of_weights(saved: Path) -> None:
    rewrite_weights(saved, b"PK\x03\x04 a pickle of some other library" * 10)
    with pytest.raises(CheckpointError, match="corrupt or not safetensors"):
        Estimator.load(saved)


def test_weights_of_another_network(saved: Path) -> None:
    reference = {k: v for k, v in safetensors.torch.load_file(saved / WEIGHTS).items() if k.startswith("reference.")}
    rewrite_weights(saved, safetensors.torch.save({"other.weight": torch.zeros(3), **reference}))
    with pytest.raises(CheckpointError, match=r"(?s)weights do not fit.*other\.weight"):
        Estimator.load(saved)


def test_safetensors_without_a_reference(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / WEIGHTS)
    kept = {k: v for k, v in tensors.items() if not k.startswith("reference.")}
    rewrite_weights(saved, safetensors.torch.save(kept))
    with pytest.raises(CheckpointError, match="reference"):
        Estimator.load(saved)


def test_weights_and_description_of_different_runs(saved: Path, tmp_path: Path) -> None:
    make(seed=1).save(tmp_path / "other")
    (saved / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(CheckpointError, match="checksums differ"):
        Estimator.load(saved)


def test_changed_weights_do_not_give_the_reference_output(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / WEIGHTS)
    changed = {k: v if k.startswith("reference.") else v + 0.5 for k, v in tensors.items()}
    rewrite_weights(saved, safetensors.torch.save(changed))
    with pytest.raises(CheckpointError, match="stored reference output is not reproduced: log densities differ by"):
        Estimator.load(saved)
    Estimator.load(saved, check_reference=False).save(saved)
    Estimator.load(saved)


def test_a_machine_that_rounds_otherwise_can_load_a_network_whose_search_is_chaotic(tmp_path: Path) -> None:
    model = build_model("neural_classification")
    part = Part("iterative", {"widenings": 16})
    Estimator(model, part, "low_rank", EstimatorInfo((2, 2), (64, 128))).save(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    noise = 1e-7 * torch.randn(tensors["reference.x"].shape, generator=generator_for(5))
    moved = tensors | {"reference.x": tensors["reference.x"] * (1 + noise)}
    rewrite_weights(tmp_path, safetensors.torch.save(moved))
    Estimator.load(tmp_path)
    moved["reference.sensitivity"] = torch.zeros(())
    rewrite_weights(tmp_path, safetensors.torch.save(moved))
    with pytest.raises(CheckpointError, match="stored reference output is not reproduced"):
        Estimator.load(tmp_path)


@pytest.mark.parametrize("encoder", list(SMALL))
def test_an_estimator_of_many_columns_comes_back(tmp_path: Path, encoder: str) -> None:
    """Its reference has fewer columns than it takes, so that encoders of one size pad it."""
    first = make(encoder=encoder, density="full" if encoder == "iterative" else "gaussian", columns=(1, 9))
    first.save(tmp_path)
    Estimator.load(tmp_path)


def test_weights_that_are_not_finite_do_not_give_the_reference_output(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / WEIGHTS)
    changed = {k: v if k.startswith("reference.") else v * torch.nan for k, v in tensors.items()}
    rewrite_weights(saved, safetensors.torch.save(changed))
    with pytest.raises(CheckpointError, match="differ by nan"):
        Estimator.load(saved)


@pytest.mark.parametrize(("model", "difference"), [
    (LinearRegression(noise="inferred"), "noise_scale"),
    (build_model("linear_classification"), "weights"),
    (build_model("gaussian_mean"), "mean"),
    (LinearRegression(noise=4.0), "noise"),
    (LinearRegression(priors={"weights": Normal(0.0, 9.0)}), "weights"),
], ids=["noise_scale", "classes", "mean", "option", "prior"])
def test_another_model_is_refused_and_the_difference_named(saved: Path, model: Model, difference: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s)differs.*{difference}"):
        Estimator.load(saved, model=model)


# -- a disk that is full -------------------------------------------------------------------------
def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _nth(original: Any, fails_at: int) -> Any:
    """The function, which fails at one of its calls."""
    calls = iter(range(1, 100))
    return lambda *a, **k: _no_space() if next(calls) == fails_at else original(*a, **k)


@pytest.mark.parametrize(("function", "fails_at"), [
    ("replace", 1), ("fsync", 1),
    ("fsync", 2),
])
def test_a_full_disk_leaves_the_old_estimator(saved: Path, monkeypatch: pytest.MonkeyPatch, function: str,
                                              fails_at: int) -> None:
    before = outputs(Estimator.load(saved), regression_data())
    monkeypatch.setattr(files.os, function, _nth(getattr(os, function), fails_at))
    with pytest.raises(OSError, match="No space left"):
        make(seed=1).save(saved)
    monkeypatch.undo()
    after = outputs(Estimator.load(saved), regression_data())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sorted(os.listdir(saved)) == sorted([DESCRIPTION, WEIGHTS])


def test_a_full_disk_at_opening_leaves_the_old_estimator(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open", _no_space, raising=False)
    with pytest.raises(OSError, match="No space left"):
        make(seed=1).save(saved)
    Estimator.load(saved)


# -- names and options ---------------------------------------------------------------------------
@pytest.mark.parametrize(("encoder", "density", "message"), [
    ("lstm", "gaussian", r"^encoder: got 'lstm'; takes one of \['deepsets', 'gru', 'iterative', 'transformer'\]"),
    ("deepsets", "cauchy", r"^density: got 'cauchy'; takes one of \['flow', 'full', 'gaussian', "),
    (Part("deepsets", {"depth": 3}), "gaussian", r"^options of encoder deepsets: .*depth"),
    ("deepsets", Part("gaussian", {"rank": 3}), r"^options of density gaussian: .*rank"),
    (Part("deepsets", {"width": 0}), "gaussian", r"width"),
    (Part("iterative", {"candidates": 3}), "full", r"^candidates: got 3"),
    (Part("iterative", {"layers": 0}), "full", r"^layers: got 0"),
    pytest.param(Part("iterative", {"width": 10, "heads": 4}), "full", r"width.*10|heads.*4"),
    ("iterative", Part("low_rank", {"rank": 0}), r"rank"),
], ids=str)
def test_wrong_names_and_options_are_named(encoder: str | Part, density: str | Part, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Estimator(LinearRegression(), encoder, density, EstimatorInfo((2, 2)))


def test_parts_in_every_notation() -> None:
    assert Part.of("gru") == Part("gru") == Part.of({"name": "gru", "options": {}})


# -- numbers of features -------------------------------------------------------------------------
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_one_number_of_features_takes_no_other(encoder: str) -> None:
    made = make(encoder=encoder, columns=(3, 3))
    with pytest.raises(DataError, match=r"^x: got 4 features; takes at most 3 features"):
        made.posterior(regression_data(4))
    with pytest.raises(DataError, match=r"^x: got 2 features; takes exactly 3 features"):
        made.posterior(regression_data(2))


@pytest.mark.parametrize("encoder", ["deepsets", "gru", "transformer"])
def test_encoders_of_one_size_pad_up_to_their_maximum(encoder: str) -> None:
    made = make(encoder=encoder, columns=(1, 4))
    posterior = made.posterior(regression_data(2))
    assert posterior.sample(3, seed=0)["weights"].shape == (2, 3, 2)
    assert posterior.dataset.x.shape[-1] == 4
    by_hand = made.posterior(regression_data(2).padded(9, 4))
    assert torch.equal(by_hand.sample_theta(3, seed=0), posterior.sample_theta(3, seed=0))
    with pytest.raises(DataError, match=r"^x: got 5 features; takes at most 4 features"):
        made.posterior(regression_data(5))


@pytest.mark.parametrize("density", ["gaussian", "full", "low_rank"])
def test_the_iterative_encoder_takes_more_features_than_it_was_trained_on(density: str) -> None:
    made = make(encoder="iterative", density=density, columns=(1, 3))
    assert not made.fixed_size
    dataset = regression_data(8, rows=40)
    posterior = made.posterior(dataset)
    assert posterior.sample(3, seed=0)["weights"].shape == (2, 3, 8)
    assert torch.isfinite(posterior.log_prob(posterior.sample_theta(3, seed=0))).all()
    exact = made.model.exact_posterior(dataset)
    assert ((posterior.sample_theta(2000, seed=0).mean(1) - exact.mean) / exact.stddev).abs().max() < 3.0
    assert any("features" in note for note in posterior.notes)


def test_extra_columns_are_not_counted_as_features() -> None:
    model = build_model("poisson_regression")
    made = make(model, columns=(3, 3))
    with pytest.raises(DataError, match=r"^x: got 3 features; takes at most 2 features"):
        made.posterior(simulated(model, 4))


def test_data_that_the_model_cannot_have_produced() -> None:
    with pytest.raises(DataError, match=r"^y: got None"):
        make().posterior(Dataset.of(torch.zeros(4, 2)))


def test_posterior_leaves_the_training_mode_as_it_was() -> None:
    made = make().train()
    made.posterior(regression_data())
    assert made.training


# -- simulators ----------------------------------------------------------------------------------
def test_a_simulator_is_refused_by_the_iterative_encoder_and_told_what_works() -> None:
    def simulate(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return params["rate"] * torch.rand(x.shape[0])

    rate = Parameter("rate", support=constraints.positive, prior=Exponential(1.0))
    model = CustomModel([rate], simulate=simulate)
    with pytest.raises(UnsupportedError, match="transformer, deepsets or gru"):
        make(model, "iterative").posterior(regression_data())
    for encoder in ("transformer", "deepsets", "gru"):
        assert make(model, encoder).posterior(regression_data()).sample(3, seed=0)["rate"].shape == (2, 3)


# -- labels that can be exchanged ----------------------------------------------------------------
@pytest.mark.parametrize("encoder", ["iterative", "deepsets"])
@pytest.mark.parametrize("columns", [(2, 2), (1, 3)])
def test_symmetrise_gives_both_labellings(encoder: str, columns: tuple[int, int]) -> None:
    model = build_model("gaussian_mixture")
    made = make(model, encoder, Part("gaussian", {"symmetrise": True}), columns)
    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0]]).repeat(30, 1)
    dataset = Dataset.of(centres + torch.randn(60, 2, generator=generator_for(0)))
    posterior = made.posterior(dataset)
    theta = posterior.sample_theta(2000, seed=0)
    width = theta.shape[-1] // 2
    swapped = torch.cat([theta[..., width:], theta[..., :width]], -1)
    torch.testing.assert_close(posterior.log_prob(theta), posterior.log_prob(swapped), rtol=1e-4, atol=1e-3)
    if encoder == "iterative":  # it knows where the components are
        share = (theta[0, :, 0] > theta[0, :, width]).double().mean()
        assert abs(float(share) - 0.5) < 5 * 0.5 / 2000**0.5


def test_symmetrise_comes_back(tmp_path: Path) -> None:
    first = make(build_model("gaussian_mixture"), "iterative", Part("gaussian", {"symmetrise": True}))
    first.save(tmp_path)
    dataset = simulated(first.model, 2)
    second = Estimator.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(first, dataset), outputs(second, dataset), strict=True))


def test_symmetrise_needs_an_axis_that_can_be_exchanged() -> None:
    with pytest.raises(InputError, match=r"^symmetrise: got True; takes a model with exchangeable axes"):
        make(density=Part("gaussian", {"symmetrise": True}))
