"""The shortcuts of the Transformer give what the plain computation gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from posteria.encoders import transformer
from posteria.encoders.base import EncoderSpec, rows_of, sizes_of
from posteria.encoders.transformer import TransformerEncoder, _Layer
from posteria.errors import InputError
from posteria.testing.encoders import LinearLogJoint, random_dataset
from posteria.types import Dataset

SPEC = EncoderSpec(num_columns=4)


@pytest.fixture(params=[0, 2], ids=["full", "padded"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return random_dataset(rows=9).padded(9 + request.param, 4)


def _summary(encoder: TransformerEncoder, dataset: Dataset) -> Tensor:
    return encoder(dataset, LinearLogJoint(dataset)).summary


@pytest.mark.parametrize("real_rows", [None, 5])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_reading_the_first_token_is_the_full_layer_at_that_token(pre_norm: bool, real_rows: int | None) -> None:
    layer = _Layer(16, 4, 32, pre_norm, dropout=0.0).double()
    for bias in (layer.attention.project.bias, layer.attention.combine.bias):
        nn.init.normal_(bias)
    tokens = torch.randn(3, 8, 16, dtype=torch.float64)
    real = None if real_rows is None else (torch.arange(8) < real_rows).expand(3, 8)
    torch.testing.assert_close(layer.read(tokens, real), layer(tokens, real)[:, 0])


def test_products_and_fused_attention_agree(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TransformerEncoder(SPEC, layers=3, width=16).eval()
    by_products = _summary(encoder, dataset)
    monkeypatch.setattr(transformer, "_SHORT", 0)
    torch.testing.assert_close(_summary(encoder, dataset), by_products, rtol=1e-4, atol=1e-5)


def test_the_paper_variant_is_torchs_own_transformer(dataset: Dataset) -> None:
    encoder = TransformerEncoder(SPEC, layers=3, width=16, heads=2, pre_norm=False).eval()
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, 0.1, batch_first=True), 3,
                                  enable_nested_tensor=False).eval()
    _copy(encoder, plain)
    first = encoder.start + encoder.embed_sizes(sizes_of(dataset))
    tokens = torch.cat([first[:, None], encoder.embed(rows_of(dataset, SPEC))], 1)
    padding = nn.functional.pad(~dataset.observed, (1, 0), value=False)
    with torch.enable_grad():  # keeps torch off its inference-only path
        expected = plain(tokens, src_key_padding_mask=padding)[:, 0]
    torch.testing.assert_close(_summary(encoder, dataset), expected, rtol=1e-4, atol=1e-5)


def _copy(encoder: TransformerEncoder, plain: nn.TransformerEncoder) -> None:
    for ours, theirs in zip([*encoder.earlier, encoder.last], plain.layers, strict=True):
        assert isinstance(ours, _Layer)
        assert isinstance(theirs, nn.TransformerEncoderLayer)
        theirs.self_attn.in_proj_weight = nn.Parameter(ours.attention.project.weight)
        theirs.self_attn.in_proj_bias = ours.attention.project.bias
        theirs.self_attn.out_proj.load_state_dict(ours.attention.combine.state_dict())
        theirs.norm1, theirs.norm2 = ours.attention_norm, ours.network_norm
        theirs.linear1.load_state_dict(ours.network[0].state_dict())
        theirs.linear2.load_state_dict(ours.network[3].state_dict())


def test_positions_are_waves_of_the_place_among_the_real_rows() -> None:
    """Sine and cosine in turn, of the position over 10000^(2i / width) (Vaswani et al. 2017, section 3.5)."""
    observed = torch.tensor([[True, True, True, True], [True, False, True, False]])
    placed = transformer._POSITIONS["sinusoidal"](torch.zeros(2, 4, 6), observed)
    for dataset, row, place in [(0, 0, 0), (0, 3, 3), (1, 0, 0), (1, 2, 1)]:
        angles = [place / 10000 ** (2 * i / 6) for i in range(3)]
        expected = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
        torch.testing.assert_close(placed[dataset, row], torch.tensor(expected))


def test_positions_add_no_weights_and_nothing_else() -> None:
    """Where every row has the same place, all that positions do is shift the rows' tokens alike."""
    plain, placed = (TransformerEncoder(SPEC, layers=2, width=16, positions=p) for p in ("none", "sinusoidal"))
    placed.load_state_dict(plain.state_dict())
    with torch.no_grad():  # at place zero, sines are 0 and cosines 1
        plain.embed.bias[1::2] += 1.0
    one_row = random_dataset(rows=1)
    torch.testing.assert_close(_summary(placed, one_row), _summary(plain, one_row))


def test_positions_go_on_beyond_the_rows_seen_in_training() -> None:
    dataset = random_dataset(rows=2000, num_datasets=1)
    encoder = TransformerEncoder(SPEC, layers=1, width=16, positions="sinusoidal")
    assert _summary(encoder, dataset).isfinite().all()


def test_dropout_acts_in_training_mode_only(dataset: Dataset) -> None:
    encoder = TransformerEncoder(SPEC, layers=2, width=16, dropout=0.5)
    assert not torch.equal(_summary(encoder, dataset), _summary(encoder, dataset))
    encoder.eval()
    assert torch.equal(_summary(encoder, dataset), _summary(encoder, dataset))


@pytest.mark.parametrize(("options", "named"), [
    ({"width": 30}, "width"), ({"layers": 0}, "layers"), ({"heads": 0}, "heads"), ({"dropout": 1.0}, "dropout"),
    ({"feedforward": -1}, "feedforward"), ({"positions": "learned"}, "positions"),
    ({"positions": "sinusoidal", "width": 15, "heads": 3}, "width"),
])
def test_errors_name_the_argument(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: got"):
        TransformerEncoder(SPEC, **options)  # type: ignore[arg-type]
