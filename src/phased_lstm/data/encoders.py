"""What stands between measured values and a layer: scale, missing values, event tokens, addresses of event cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .._checks import check_flag, check_size, require
from .events import EventBatch

# A mean of so many deviations takes twelve of the 24 bits of float32.
_FAR = 2.0**12
# What a deviation is to have at least, as a number of steps of a type, where digits are to be kept ...
_KEPT = 2.0**11
# ... and so many deviations from the mean a value may be.
_SPREAD = 64.0
# A deviation of so little of the mean is rounding.
_CONSTANT = 1e-12


class KeepsBuffersWide(nn.Module):
    """A module whose own floating buffers move to other devices and are never narrowed.

    What a scale subtracts or divides by must have the digits of what is measured, however few the weights have.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except TypeError:
                # Apple's GPUs have no float64.
                if tensor.dtype != torch.float64:
                    raise
                return fn(tensor.float())

        before = dict(self._buffers)
        super()._apply(move, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype and moved.device.type != "mps":
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Where tensors of a checkpoint are assigned rather than copied.
        for name, buffer in self._buffers.items():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and buffer is not None and given.is_floating_point():
                state_dict[prefix + name] = given.to(buffer.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Standardizer(KeepsBuffersWide):
    """Brings each channel to mean 0 and standard deviation 1, as fitted on the training part; NaN stays NaN.

    Mean and deviation are buffers of float64: they move, save and load with the model, and stay float64 where it is
    cast to another type. Until `fit_` is called nothing changes.

    Args:
        num_channels: F.

    Attributes:
        mean: (F,), 0 for a channel never measured.
        std: (F,), 1 for a channel that is constant or never measured.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        num_channels = check_size("num_channels", num_channels)
        self.register_buffer("mean", torch.zeros(num_channels, dtype=torch.float64))
        self.register_buffer("std", torch.ones(num_channels, dtype=torch.float64))

    def fit_(self, values: Tensor | EventBatch | Iterable[Tensor | EventBatch]) -> Self:
        """Take mean and deviation from measured values; give the training part only.

        Args:
            values: (..., F), a batch, or an iterable of either, of which one is in memory at a time. NaN is not
                measured; padding would count as measured, so give an EventBatch rather than padded values.

        Returns:
            The standardizer itself.

        Raises:
            ValueError: another number of channels, infinite values or such that their squares are, or nothing at all.
        """
        parts = [values] if isinstance(values, (Tensor, EventBatch)) else values
        count = torch.zeros(self.mean.shape, dtype=torch.float64)
        mean, squares = torch.zeros_like(count), torch.zeros_like(count)
        for part in parts:
            flat = part.values if isinstance(part, EventBatch) else part
            self._check(flat)
            flat = flat.detach().to("cpu", torch.float64).reshape(-1, len(mean))
            measured = ~flat.isnan()
            if bool(flat.isinf().any()):
                raise ValueError(f"values of channel {int(flat.isinf().any(dim=0).nonzero()[0])} are infinite")
            new = measured.sum(dim=0)
            part_mean = torch.where(measured, flat, 0.0).sum(dim=0) / new.clamp(min=1)
            part_squares = torch.where(measured, flat - part_mean, 0.0).square().sum(dim=0)
            # Joined pairwise: a running sum of squares would lose all digits where the mean is large.
            total = (count + new).clamp(min=1)
            shift = part_mean - mean
            mean = mean + shift * new / total
            squares = squares + part_squares + shift.square() * count * new / total
            count = count + new
        if not bool(count.any()):
            raise ValueError("there is no measured value to fit to: all are NaN, or nothing was given")
        std = (squares / count.clamp(min=1)).sqrt()
        if not bool(std.isfinite().all()):
            channel = int((~std.isfinite()).nonzero()[0])
            raise ValueError(f"values of channel {channel} are too large for a deviation: give them in another unit")
        # A constant channel has rounding for a deviation, which must not be blown up to 1.
        constant = std <= _CONSTANT * mean.abs()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(constant, 1.0, std))
        return self

    def forward(self, values: Tensor) -> Tensor:
        """Return (values - mean) / std, (..., F), in the type of the values."""
        self._check(values)
        # Types of 16 bits have no room for most means: narrowed after the mean is off.
        wide = values if values.dtype in (torch.float32, torch.float64) else values.to(self.mean.dtype)
        return ((wide - self.mean.to(wide.dtype)) / self.std.to(wide.dtype)).to(values.dtype)

    def inverse(self, values: Tensor) -> Tensor:
        """Return values * std + mean, (..., F); in float64 where the type of the values loses what varies in them."""
        self._check(values)
        if self._beyond(values.dtype):
            values = values.to(self.mean.dtype)
        return values * self.std.to(values.dtype) + self.mean.to(values.dtype)

    def _beyond(self, dtype: torch.dtype) -> bool:
        """Whether measured values have digits or a size that a type has no room for."""
        limits = torch.finfo(dtype)
        if dtype == self.mean.dtype or torch.compiler.is_compiling():
            return False
        far = self.mean.abs() * limits.eps > self.std / _KEPT
        return bool((far | (self.mean.abs() + _SPREAD * self.std > limits.max)).any())

    def _check(self, values: Tensor) -> None:
        if not isinstance(values, Tensor):
            raise TypeError(f"values should be a tensor or an EventBatch, got: {type(values).__name__}")
        if values.dim() == 0 or values.shape[-1] != len(self.mean) or not values.is_floating_point():
            raise ValueError(
                f"values should be floating, (..., {len(self.mean)}), got {values.dtype} {tuple(values.shape)}"
            )

    def extra_repr(self) -> str:
        return f"num_channels={len(self.mean)}"


def needs_double(values: Tensor) -> bool:
    """Whether values (S, F) are float64 and float32 would lose what varies in a channel, or its range."""
    if values.dtype != torch.float64 or not values.numel():
        return False
    # One channel at a time, as there may be little memory beside them all.
    return any(_needs_double(column[~column.isnan()]) for column in values.detach().unbind(dim=1))


def _needs_double(measured: Tensor) -> bool:
    if not len(measured):
        return False
    low, high = (float(bound) for bound in measured.aminmax())
    if max(-low, high) > torch.finfo(torch.float32).max:
        return True
    # Only where all are on one side of zero can the mean be far from it.
    if low == high or low <= 0.0 <= high:
        return False
    std, mean = (float(moment) for moment in torch.std_mean(measured, correction=0))
    return loses_digits(mean, std)


def loses_digits(mean: float, std: float) -> bool:
    """Whether float32 would lose what varies about a mean."""
    return abs(mean) > _FAR * std > _FAR * _CONSTANT * abs(mean)


class ValuesAndMask(nn.Module):
    """(..., F) values with NaN for missing become (..., 2 F): values, 0 where missing, then 1 measured, 0 missing."""

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., 2 F) in the dtype of the values."""
        missing = values.isnan()
        return torch.cat([values.masked_fill(missing, 0.0), (~missing).to(values.dtype)], dim=-1)


def last_measured(batch: EventBatch) -> tuple[EventBatch, EventBatch]:
    """Carry the last measured value of each channel forward, within its sequence, and tell how old it is.

    Args:
        batch: values (S, F) floating, NaN where not measured.

    Returns:
        Two batches of the same times: values (S, F) of the last measurement up to and with each step; and (S, F) the
        time since it, in the unit of the times, 0 where a step measures the channel itself. Both are NaN before
        the first measurement of a channel.

    Raises:
        TypeError: no EventBatch.
        ValueError: values that are not floating, or times that go back within a sequence.
    """
    if not isinstance(batch, EventBatch):
        raise TypeError(f"batch should be an EventBatch, got: {type(batch).__name__}")
    values, times = batch.values, batch.times
    if not values.is_floating_point():
        raise ValueError(f"values should be floating, NaN where not measured, got {values.dtype}")
    steps = torch.arange(len(values), device=values.device)
    first = batch.offsets[:-1].repeat_interleave(batch.lengths).unsqueeze(1)
    # -1 before any measurement is less than every first step, as is a measurement of a sequence before.
    rows = torch.where(values.isnan(), -1, steps.unsqueeze(1)).cummax(dim=0).values
    known, rows = rows >= first, rows.clamp(min=0)
    wide = times if times.is_floating_point() else times.long()
    age = (wide.unsqueeze(1) - wide[rows]).to(torch.promote_types(values.dtype, torch.float32))
    if bool((known & (age < 0)).any()):
        raise ValueError("times should not go back within a sequence: sort the events first")
    return (
        EventBatch(torch.where(known, values.gather(0, rows), torch.nan), times, batch.offsets),
        EventBatch(torch.where(known, age, torch.nan), times, batch.offsets),
    )


def event_tokens(batch: EventBatch) -> EventBatch:
    """Make one event of each measured value: (channel number, value) in place of a row with gaps.

    Args:
        batch: values (S, F), NaN where not measured.

    Returns:
        A batch with values (T, 2), in order of time and then of channel, for `TokenEncoder`.

    Raises:
        ValueError: values that are not float32 or float64, or too many channels for their dtype to number.
    """
    values = batch.values
    if values.dtype not in (torch.float32, torch.float64) or batch.num_features > 1 << 24:
        raise ValueError(
            f"values should be float32 or float64, of at most 2**24 channels, got {values.dtype} of "
            f"{batch.num_features}"
        )
    measured = ~values.isnan()
    rows, channels = measured.nonzero(as_tuple=True)
    tokens = torch.stack([channels.to(values.dtype), values[rows, channels]], dim=1)
    before = torch.cat([rows.new_zeros(1), measured.sum(dim=1).cumsum(0)])
    return EventBatch(tokens, batch.times[rows], before[batch.offsets])


def _whole(numbers: Tensor, name: str) -> Tensor:
    whole = numbers.long()
    if numbers.is_floating_point():
        require((whole == numbers).all(), f"{name} should be whole numbers")
    return whole


class TokenEncoder(nn.Module):
    """An event token (channel number, value) becomes embedding[channel] + value * slope[channel].

    Both tables are learned, so that a value can mean something else in each channel.

    Args:
        num_channels: size of the vocabulary.
        embedding_dim: E.
    """

    def __init__(self, num_channels: int, embedding_dim: int) -> None:
        super().__init__()
        num_channels = check_size("num_channels", num_channels)
        embedding_dim = check_size("embedding_dim", embedding_dim)
        self.num_channels = num_channels
        self.embedding = nn.Embedding(num_channels, embedding_dim)
        self.slope = nn.Embedding(num_channels, embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., E) for tokens (..., 2) as `event_tokens` makes them.

        Raises:
            ValueError: another shape, or a channel that is no whole number or not in the vocabulary.
        """
        if tokens.dim() == 0 or tokens.shape[-1] != 2:
            raise ValueError(f"tokens should be (..., 2): channel number and value; got {tuple(tokens.shape)}")
        channels = _whole(tokens[..., 0], "channel numbers")
        require(
            ((channels >= 0) & (channels < self.num_channels)).all(),
            f"channel numbers should be from 0 to {self.num_channels - 1}",
        )
        slope = self.slope(channels)
        return self.embedding(channels) + tokens[..., 1:].to(slope.dtype) * slope


class AddressEncoder(nn.Module):
    """The address (x, y, polarity) of an event of an event camera becomes a learned vector.

    Args:
        width: number of columns; x is from 0 to width - 1.
        height: number of rows.
        embedding_dim: E.
        polarities: number of polarities; 1 where there is none, and addresses are still (x, y, 0).
        factorized: whether a vector is the sum of one for x, one for y and one for the polarity, which takes
            width + height + polarities vectors, instead of one for each address.
    """

    def __init__(
        self, width: int, height: int, embedding_dim: int, *, polarities: int = 2, factorized: bool = False
    ) -> None:
        super().__init__()
        width, height = check_size("width", width), check_size("height", height)
        embedding_dim, polarities = check_size("embedding_dim", embedding_dim), check_size("polarities", polarities)
        factorized = check_flag("factorized", factorized)
        self.sizes = (width, height, polarities)
        tables = self.sizes if factorized else (width * height * polarities,)
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding_dim) for size in tables)

    def forward(self, addresses: Tensor) -> Tensor:
        """Return (..., E) for addresses (..., 3): x, y, polarity, whole numbers of any dtype.

        Raises:
            ValueError: another shape, or an address that is no whole number or outside the sensor.
        """
        if addresses.dim() == 0 or addresses.shape[-1] != 3:
            raise ValueError(f"addresses should be (..., 3): x, y, polarity; got {tuple(addresses.shape)}")
        whole = _whole(addresses, "x, y and polarity")
        limits = torch.tensor(self.sizes, device=whole.device)
        require(
            ((whole >= 0) & (whole < limits)).all(),
            "x, y and polarity should be from 0 to " + ", ".join(str(size - 1) for size in self.sizes),
        )
        x, y, polarity = whole.unbind(dim=-1)
        width, height, _ = self.sizes
        if len(self.embeddings) == 1:
            return self.embeddings[0]((polarity * height + y) * width + x)
        parts = [table(index) for table, index in zip(self.embeddings, (x, y, polarity), strict=True)]
        return parts[0] + parts[1] + parts[2]
