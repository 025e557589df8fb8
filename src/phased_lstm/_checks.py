"""Checks of arguments that several modules share. Imports torch alone."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Oscillation = Literal["triangle", "square", "cosine"]
OSCILLATIONS: tuple[str, ...] = get_args(Oscillation)
TIME_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)
RATIO_MIN = 1e-6
# Differences of integer times up to here do not overflow int64.
LARGEST_INTEGER_TIME = (1 << 62) - 1


def plain(value: Any) -> Any:
    """Return a scalar of numpy or torch, or an array of no dimensions, as the Python number or bool that it holds."""
    if type(value) in (bool, int, float, str) or value is None:
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def check_integer(name: str, value: object) -> int:
    """Return an integer of any library as an int, else raise TypeError, with torch.nn.LSTM's message."""
    number = plain(value)
    if not isinstance(number, numbers.Integral) or isinstance(number, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    return int(number)


def check_floating(dtype: torch.dtype | None) -> None:
    """Raise ValueError unless parameters of this dtype, or of the default one, have a gate."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype should be a floating one, got {dtype}: a phase and its gate are real numbers")


def check_size(name: str, value: object) -> int:
    """Return a positive integer of any library as an int, else raise, with torch.nn.LSTM's messages."""
    size = check_integer(name, value)
    if size <= 0:
        raise ValueError(f"{name} must be greater than zero, got {size}")
    return size


def check_number(name: str, value: object, wanted: str = "a number") -> float:
    """Return a real number of any library as a float, else raise TypeError."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} should be {wanted}, got: {type(value).__name__}")
    return float(number)


def check_flag(name: str, value: object) -> bool:
    """Return True or False of any library as a bool, else raise TypeError."""
    flag = plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return flag


def check_leak_and_oscillation(leak: float, oscillation: str) -> float:
    """Return the leak as a float, or raise a TypeError or ValueError unless both are valid."""
    leak = check_number("leak", leak)
    if not 0.0 <= leak <= 1.0:
        raise ValueError(f"leak should be in [0, 1], got {leak}")
    if oscillation not in OSCILLATIONS:
        raise ValueError(f"oscillation should be one of {', '.join(OSCILLATIONS)}, got {oscillation!r}")
    return leak


def check_gate_options(
    leak: float,
    ratio_on: float,
    trainable_ratio_on: bool,
    period_init_min: float,
    period_init_max: float,
    oscillation: str,
) -> dict[str, Any]:
    """Return the options of a gate by name, as plain numbers and bools.

    Raises:
        TypeError, ValueError: naming the first that is out of range.
    """
    ratio_on = check_number("ratio_on", ratio_on)
    period_init_min = check_number("period_init_min", period_init_min)
    period_init_max = check_number("period_init_max", period_init_max)
    trainable_ratio_on = check_flag("trainable_ratio_on", trainable_ratio_on)
    if not (RATIO_MIN <= ratio_on <= 1.0):
        raise ValueError(
            f"ratio_on should be in [{RATIO_MIN:g}, 1], the share of a period that is open, got {ratio_on}"
        )
    if not (0.0 < period_init_min <= period_init_max < math.inf):
        raise ValueError(
            f"period_init_min and period_init_max should be positive, finite and in this order, "
            f"got {period_init_min} and {period_init_max}"
        )
    leak = check_leak_and_oscillation(leak, oscillation)
    return {
        "leak": leak, "ratio_on": ratio_on, "trainable_ratio_on": trainable_ratio_on,
        "period_init_min": period_init_min, "period_init_max": period_init_max, "oscillation": str(oscillation),
    }  # fmt: skip


def check_time_dtype(times: object) -> Tensor:
    """Return `times` if it is a tensor of an allowed dtype, else raise."""
    if not isinstance(times, Tensor):
        raise TypeError(f"times should be a tensor, got: {type(times).__name__}")
    if times.dtype not in TIME_DTYPES:
        raise ValueError(
            f"times should be int32, int64, float32 or float64, got {times.dtype}: narrower types "
            f"cannot tell time stamps apart; convert with times.to(torch.float64)"
        )
    return times


def check_time_values(times: Tensor) -> None:
    """Raise ValueError unless floating times are finite, and integers leave room for a difference."""
    if times.is_floating_point():
        # One pass where it settles the matter: a sum is finite only if every term is.
        if type(times) is Tensor and not values_unknown(times) and _finite_sum(times):
            return
        finite = torch.isfinite(times)
        require(finite.all(), "times should be finite", times, ~finite, "; drop or repair that step")
    elif times.dtype == torch.int64:
        require(
            ((times >= -LARGEST_INTEGER_TIME) & (times <= LARGEST_INTEGER_TIME)).all(),
            "integer times should be within 2**62 of zero",
        )


def _finite_sum(times: Tensor) -> bool:
    return _innermost(times) is times and math.isfinite(times.detach().sum().item())


def valid_rows(times: object, lengths: Tensor | Sequence[int] | None) -> list[Tensor]:
    """Return the valid time stamps of each sequence of times (L,) or (N, L), checked.

    Raises:
        TypeError: times that are not a tensor.
        ValueError: another shape or dtype, values that are not finite, or lengths that do not fit.
    """
    times = check_time_dtype(times)
    if times.dim() not in (1, 2):
        raise ValueError(
            f"times should be of shape (L,), shared, or (N, L), a row for each sequence, got {tuple(times.shape)}"
        )
    if lengths is None:
        rows = [times] if times.dim() == 1 else list(times)
    elif times.dim() == 1:
        raise ValueError(f"lengths goes with times (N, L), one row a sequence, got times {tuple(times.shape)}")
    else:
        counts = check_lengths(lengths, times.shape[0], times.shape[1], times.device).tolist()
        rows = [row[:count] for row, count in zip(times, counts, strict=True)]
    for row in rows:
        check_time_values(row)
    return rows


def check_lengths(lengths: Tensor | Sequence[int], batch: int, steps: int, device: torch.device) -> Tensor:
    """Return lengths as an int64 tensor (batch,) on `device`, or raise.

    Raises:
        TypeError: neither a tensor nor a sequence of int.
        ValueError: a wrong dtype or shape, or a length outside 0 to `steps`.
    """
    if not isinstance(lengths, Tensor):
        if not isinstance(lengths, Sequence):
            raise TypeError(f"lengths should be a tensor or a sequence of int, got: {type(lengths).__name__}")
        lengths = [plain(length) for length in lengths]
        if any(isinstance(length, bool) or not isinstance(length, int) for length in lengths):
            raise TypeError(f"lengths should be a tensor or a sequence of int, got: {lengths!r}")
        if any(not 0 <= length <= steps for length in lengths):
            raise ValueError(f"lengths should be from 0 to {steps}, the number of steps, got {lengths}")
        lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths should be int32 or int64, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths should be of shape ({batch},), one for each sequence, got {tuple(lengths.shape)}")
    # A copy, as the caller may go on to change it before the backward pass.
    lengths = lengths.to(device=device, dtype=torch.int64, copy=True)
    # Naming a symbolic size would fix it for good.
    most = "" if torch.compiler.is_compiling() else f"{steps}, "
    require(
        ((lengths >= 0) & (lengths <= steps)).all(), f"lengths should be from 0 to {most}the number of steps", lengths
    )
    return lengths


def check_units(name: str, values: Tensor, valid: Tensor, wanted: str) -> None:
    """Raise ValueError naming the first unit whose value is not valid."""
    if not bool(valid.all()):
        unit = int((~valid).nonzero()[0])
        raise ValueError(f"{name} should be {wanted}, got {values[unit].item()} for unit {unit}")


def require(
    condition: Tensor, wanted: str, values: Tensor | None = None, wrong: Tensor | None = None, advice: str = ""
) -> None:
    """Raise ValueError unless a boolean scalar is true, wherever its value can be known.

    The error has the values, or the first of those that are `wrong`, and what to do about it.
    """
    if values_unknown(condition):
        if torch.compiler.is_compiling():
            torch._assert_async(condition, wanted)
        return
    condition = _innermost(condition)
    if bool(condition.all()):
        return
    if values is None:
        raise ValueError(wanted)
    values = _innermost(values)
    if wrong is None:
        raise ValueError(f"{wanted}, got {values.tolist()}")
    at = _innermost(wrong).nonzero()[0].tolist()
    where = f" in sequence {at[0]} at step {at[1]}" if len(at) == 2 else f" at {at[0]}" if at else ""
    raise ValueError(f"{wanted}, got {values[tuple(at)].item()}{where}{advice}")


def all_finite(*tensors: Tensor | None) -> bool:
    """Whether every number of these tensors is known to be finite; in a traced program nothing is known."""
    present = [tensor for tensor in tensors if tensor is not None]
    if values_unknown(*present):
        return False
    return all(bool(_innermost(torch.isfinite(tensor)).all()) for tensor in present)


def values_unknown(*tensors: Tensor) -> bool:
    """Whether the values of any of these are out of reach: in a program that is traced, and of fake or meta tensors."""
    if torch.compiler.is_compiling() or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING):
        return True
    return any(tensor.is_meta or isinstance(_innermost(tensor), FakeTensor) for tensor in tensors)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read: nothing is traced, and no transform hides them."""
    return not values_unknown(tensor) and _innermost(tensor) is tensor


_TRACING = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)


def _innermost(tensor: Tensor) -> Tensor:
    # Under vmap and the other function transforms a tensor's values are behind wrappers.
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
