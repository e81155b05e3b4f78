"""The shortcuts of the Transformer give what the plain computation gives."""

from __future__ import annotations

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


def test_dropout_acts_in_training_mode_only(dataset: Dataset) -> None:
    encoder = TransformerEncoder(SPEC, layers=2, width=16, dropout=0.5)
    assert not torch.equal(_summary(encoder, dataset), _summary(encoder, dataset))
    encoder.eval()
    assert torch.equal(_summary(encoder, dataset), _summary(encoder, dataset))


@pytest.mark.parametrize(("options", "named"), [
    ({"width": 30}, "width"), ({"layers": 0}, "layers"), ({"heads": 0}, "heads"), ({"dropout": 1.0}, "dropout"),
    ({"feedforward": -1}, "feedforward"),
])
def test_errors_name_the_argument(options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: got"):
        TransformerEncoder(SPEC, **options)  # type: ignore[arg-type]
