"""Scale, missing values, tokens and addresses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from phased_lstm.data.encoders import (
    AddressEncoder,
    Standardizer,
    TokenEncoder,
    ValuesAndMask,
    event_tokens,
    last_measured,
)
from phased_lstm.data.events import EventBatch

NAN = torch.nan


def gappy(rows: int) -> torch.Tensor:
    values = torch.randn(rows, 3, dtype=torch.float64) * torch.tensor([1.0, 50.0, 0.1]) + torch.tensor([0.0, 9e3, -4.0])
    return values.where(torch.rand(rows, 3) > 0.4, NAN)


def test_standardizer_is_that_of_the_measured_values_however_cut() -> None:
    values = gappy(200)
    expected_mean = torch.stack([column[~column.isnan()].mean() for column in values.T])
    expected_std = torch.stack([column[~column.isnan()].std(correction=0) for column in values.T])
    batch = EventBatch.from_lengths(values, torch.arange(200), [50, 150])
    for given in (values, batch, [values[:1], values[1:7], values[7:]], (part for part in (batch[:1], batch[1:]))):
        scale = Standardizer(3).double().fit_(given)
        torch.testing.assert_close(scale.mean, expected_mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(scale.std, expected_std, rtol=1e-12, atol=0)
    scaled = scale(values)
    assert torch.equal(scaled.isnan(), values.isnan())
    torch.testing.assert_close(scaled.nanmean(dim=0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(scale.inverse(scaled), values, equal_nan=True)


def test_standardizer_keeps_small_deviations_beside_large_means() -> None:
    values = 1e9 + torch.arange(10.0, dtype=torch.float64).unsqueeze(1)
    scale = Standardizer(1).double().fit_(values.split(3))
    assert scale.std.item() == pytest.approx(8.25**0.5, rel=1e-9)


def test_standardizer_leaves_constant_and_unmeasured_channels_finite() -> None:
    scale = Standardizer(3).fit_(torch.tensor([[0.1, NAN, 0.0], [0.1, NAN, 0.0], [0.1, NAN, 0.0]]))
    assert scale.std.tolist() == [1.0, 1.0, 1.0]
    assert scale.mean.tolist() == pytest.approx([0.1, 0.0, 0.0])
    assert scale(torch.tensor([0.1, 2.0, 3.0])).tolist() == pytest.approx([0.0, 2.0, 3.0])


def test_standardizer_travels_with_the_state_dict() -> None:
    fitted = Standardizer(3).fit_(gappy(20))
    other = Standardizer(3)
    other.load_state_dict(fitted.state_dict())
    values = gappy(5).float()
    assert torch.equal(other(values).nan_to_num(7), fitted(values).nan_to_num(7))
    assert other(values).dtype == torch.float32
    assert Standardizer(3)(values).nan_to_num(7).equal(values.nan_to_num(7))


def test_standardizer_moves_where_there_is_no_float64() -> None:
    def to_a_device_of_float32(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    scale = Standardizer(1).fit_(torch.tensor([[1.0], [3.0]]))
    scale._apply(to_a_device_of_float32)
    assert scale(torch.tensor([[3.0]])).tolist() == [[1.0]]


def test_standardizer_names_a_channel_that_is_too_large() -> None:
    with pytest.raises(ValueError, match="values of channel 1 are too large for a deviation"):
        Standardizer(2).fit_(torch.tensor([[1.0, 1e200], [2.0, -1e200]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(4, 2), r"values should be floating, \(..., 3\), got torch.float32 \(4, 2\)"),
        (torch.zeros(4, 3).long(), "values should be floating"),
        (torch.full((4, 3), NAN), "no measured value"),
        ([], "no measured value"),
        (torch.tensor([[0.0, torch.inf, 0.0]]), "values of channel 1 are infinite"),
    ],
)
def test_standardizer_errors(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Standardizer(3).fit_(given)


def test_values_and_mask() -> None:
    values = torch.tensor([[1.5, NAN], [NAN, 0.0]], requires_grad=True)
    encoded = ValuesAndMask()(values)
    assert encoded.tolist() == [[1.5, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    encoded.sum().backward()
    assert values.grad.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_event_tokens() -> None:
    batch = EventBatch.from_lengths(
        torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, NAN], [NAN, NAN, NAN], [NAN, 3.0, NAN]]),
        torch.tensor([10, 20, 30, 40]),
        [2, 1, 1],
    )
    tokens = event_tokens(batch)
    assert tokens.values.tolist() == [[0.0, 1.0], [2.0, 2.0], [1.0, 3.0]]
    assert tokens.times.tolist() == [10, 10, 40]
    assert tokens.lengths.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="float32 or float64"):
        event_tokens(batch.to(dtype=torch.float16))


def test_token_encoder() -> None:
    encoder = TokenEncoder(3, 4)
    encoded = encoder(torch.tensor([[[2.0, 0.5], [0.0, -1.0]]]))
    assert encoded.shape == (1, 2, 4)
    torch.testing.assert_close(encoded[0, 0], encoder.embedding.weight[2] + 0.5 * encoder.slope.weight[2])
    torch.testing.assert_close(encoded[0, 1], encoder.embedding.weight[0] - encoder.slope.weight[0])
    for channel in (3.0, -1.0):
        with pytest.raises(ValueError, match="channel numbers should be from 0 to 2"):
            encoder(torch.tensor([channel, 1.0]))
    with pytest.raises(ValueError, match="channel numbers should be whole numbers"):
        encoder(torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="tokens should be"):
        encoder(torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_addresses_have_vectors_of_their_own(dtype: torch.dtype) -> None:
    encoder = AddressEncoder(5, 3, 2)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(3), torch.arange(2)).to(dtype)
    encoded = encoder(every)
    assert encoded.shape == (30, 2)
    assert len(encoded.unique(dim=0)) == 30


def test_factorized_addresses_are_sums() -> None:
    encoder = AddressEncoder(34, 34, 8, factorized=True)
    x, y, polarity = (table.weight for table in encoder.embeddings)
    torch.testing.assert_close(encoder(torch.tensor([3, 33, 1])), x[3] + y[33] + polarity[1])
    assert sum(parameter.numel() for parameter in encoder.parameters()) == (34 + 34 + 2) * 8


@pytest.mark.parametrize("address", [[5, 0, 0], [0, 3, 0], [0, 0, 2], [-1, 0, 0]])
@pytest.mark.parametrize("factorized", [True, False])
def test_addresses_outside_the_sensor(address: list[int], factorized: bool) -> None:
    with pytest.raises(ValueError, match="from 0 to 4, 2, 1"):
        AddressEncoder(5, 3, 2, factorized=factorized)(torch.tensor(address))
    with pytest.raises(ValueError, match=r"addresses should be \(..., 3\)"):
        AddressEncoder(5, 3, 2)(torch.zeros(4, 2))


@pytest.mark.parametrize("wrong", [1.5, NAN])
def test_addresses_are_whole(wrong: float) -> None:
    with pytest.raises(ValueError, match="x, y and polarity should be whole numbers"):
        AddressEncoder(5, 3, 2)(torch.tensor([[0.0, 1.0, 0.0], [wrong, 1.0, 0.0]]))


def test_last_measurements_are_carried_forward_within_a_sequence() -> None:
    values = torch.tensor([[1.0, NAN], [NAN, 5.0], [NAN, NAN], [NAN, NAN], [2.0, NAN], [NAN, 7.0]])
    batch = EventBatch.from_lengths(values, torch.tensor([10, 20, 50, 30, 31, 40]), [3, 0, 3])
    last, since = last_measured(batch)
    expected = [[1.0, NAN], [1.0, 5.0], [1.0, 5.0], [NAN, NAN], [2.0, NAN], [2.0, 7.0]]
    assert torch.equal(last.values.nan_to_num(-1), torch.tensor(expected).nan_to_num(-1))
    ages = [[0.0, NAN], [10.0, 0.0], [40.0, 30.0], [NAN, NAN], [0.0, NAN], [9.0, 0.0]]
    assert torch.equal(since.values.nan_to_num(-1), torch.tensor(ages).nan_to_num(-1))
    assert since.times.equal(batch.times)
    assert last.offsets.equal(batch.offsets)


def test_last_measurements_need_floating_values_and_may_be_of_nothing() -> None:
    times = torch.arange(2)
    with pytest.raises(ValueError, match="values should be floating"):
        last_measured(EventBatch.from_lengths(torch.ones(2, 1, dtype=torch.int64), times, [2]))
    with pytest.raises(TypeError, match="EventBatch, got: Tensor"):
        last_measured(torch.ones(2, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="should not go back"):
        last_measured(EventBatch.from_lengths(torch.ones(2, 1).log().add(torch.tensor([[0.0], [NAN]])), -times, [2]))
    empty, _ = last_measured(EventBatch.from_lengths(torch.zeros(0, 3), times[:0], [0, 0]))
    assert empty.values.shape == (0, 3)


def test_ages_of_narrow_types_do_not_overflow() -> None:
    values = torch.tensor([[1.0], [NAN]], dtype=torch.float16)
    times = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    _, age = last_measured(EventBatch.from_lengths(values, times, [2]))
    assert age.values.flatten().tolist() == [0.0, float(2**32)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scale_is_narrowed_after_its_mean_is_off(dtype: torch.dtype) -> None:
    scale = Standardizer(1).fit_(torch.tensor([[70000.25], [80000.25]], dtype=torch.float64))
    values = torch.tensor([[60000.0], [NAN], [30.0]]).to(dtype)
    found = scale(values)
    assert found.dtype == dtype
    torch.testing.assert_close(found, scale(values.double()).to(dtype), rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_inverse_keeps_the_digits_of_a_large_offset(dtype: torch.dtype) -> None:
    scale = Standardizer(1).fit_(torch.tensor([[1.7e9], [1.7e9 + 2.0]], dtype=torch.float64))
    assert scale.inverse(torch.tensor([[0.5], [-1.0]], dtype=dtype)).tolist() == [[1.7e9 + 1.5], [1.7e9]]


def test_the_inverse_is_of_the_type_of_its_values_where_that_has_room() -> None:
    scale = Standardizer(1).fit_(torch.tensor([[-2.0], [2.0]]))
    assert scale.inverse(torch.tensor([[0.5]])).dtype == torch.float32
    assert scale.inverse(torch.tensor([[0.5]], dtype=torch.float16)).dtype == torch.float16


def test_a_scale_takes_tensors() -> None:
    for values in (torch.ones(2, 1).numpy(), [[1.0], [2.0]]):
        with pytest.raises(TypeError, match="values should be a tensor or an EventBatch, got: "):
            Standardizer(1).fit_(values)  # type: ignore[arg-type]
