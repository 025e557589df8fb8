"""Why a training loss is not finite, where the data tell."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.encoders import Standardizer
from ..data.loading import EventDataset
from ..models import SequenceNetwork

# So many standard deviations from the mean of what a scale was fitted to, a value is in another unit.
_FAR = 1e6


@torch.no_grad()
def cause_of_nan(network: SequenceNetwork, batch: EventDataset, class_weight: Tensor | None = None) -> str | None:
    """Return what in a batch makes the loss infinite or NaN, as a clause of an error; None: nothing in it does.

    Args:
        network: fitted to the training part.
        batch: sequences with labels, as they were trained on.
        class_weight: (C,) weights in the loss, or None.
    """
    config = network.config
    parts: list[tuple[str, tuple[str, ...], Standardizer | None, Tensor | None]] = [
        ("channel", config.channels, network.scale, batch.events.values),
        ("static feature", config.static, network.static_scale, batch.static),
    ]
    if network.target_scale is not None:
        names = tuple(map(str, range(config.outputs)))
        parts.append(("target", names, network.target_scale, batch.labels))
    for what, names, scale, values in parts:
        if scale is None or values is None:
            continue
        cause = _of_values(what, names, scale, values.double())
        if cause is not None:
            return cause
    times = batch.events.times
    scale_of_time = float(network.time_scale)
    if not 0.0 < scale_of_time < torch.inf:
        return f"the median interval of the training part's times is {scale_of_time}: give times that differ"
    span = float(times.max().double() - times.min().double()) if times.numel() else 0.0
    if not span / scale_of_time < 1e300:
        return f"times span {span:g}, the median interval in training was {scale_of_time:g}: bring them to one unit"
    if class_weight is not None and not bool((class_weight.isfinite() & (class_weight < 1e30)).all()):
        return f"class weights are {class_weight.tolist()}: scale them down"
    return None


def _of_values(what: str, names: tuple[str, ...], scale: Standardizer, values: Tensor) -> str | None:
    if not bool((scale.mean.isfinite() & scale.std.isfinite()).all()):
        place = int((~(scale.mean.isfinite() & scale.std.isfinite())).nonzero()[0])
        return f"the mean or deviation of {what} {names[place]} is not finite: fit the network's scale again"
    flat = values.reshape(-1, values.shape[-1])
    deviations = scale(flat).abs().nan_to_num(0.0, posinf=torch.inf)
    if not flat.numel() or float(deviations.max()) < _FAR:
        return None
    row, place = divmod(int(deviations.argmax()), flat.shape[1])
    return (
        f"{what} {names[place]} has the value {flat[row, place].item():g}, where training began with a mean of "
        f"{scale.mean[place].item():g} and a standard deviation of {scale.std[place].item():g}: bring it to that unit, "
        f"or leave the value out"
    )
