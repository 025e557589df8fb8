"""Parts of a data set: for training, validation and test."""

from __future__ import annotations

import torch
from torch import Tensor


def split_rows(count: int, fraction: float, seed: int, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw a part of the rows at random, with its share of every class that has two rows or more.

    Args:
        count: N.
        fraction: of the rows to draw, 0 to below 1; at least one row is drawn unless it is 0.
        seed: of the draw.
        classes: (N,) class numbers; None: there are none.

    Returns:
        The rows left, and those drawn, both int64 and increasing.

    Raises:
        ValueError: the fraction is out of range, or no row is left.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"the fraction to set apart should be from 0 to below 1, got {fraction}")
    wanted = max(1, round(fraction * count)) if fraction else 0
    if wanted >= count:
        raise ValueError(f"{count} sequences are too few to set {wanted} apart")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    drawn = order[:wanted]
    if classes is not None and wanted:
        groups = [order[classes[order] == number] for number in classes.unique()]
        # Largest remainders, so that the parts of the classes make up the whole.
        exact = torch.tensor([fraction * len(group) if len(group) > 1 else 0.0 for group in groups])
        sizes = exact.floor().long()
        for index in (exact - sizes).argsort(descending=True, stable=True)[: max(0, wanted - int(sizes.sum()))]:
            sizes[index] += int(exact[index] > 0)
        drawn = torch.cat([group[:size] for group, size in zip(groups, sizes.tolist(), strict=True)])
    left = torch.ones(count, dtype=torch.bool)
    left[drawn] = False
    return left.nonzero().flatten(), drawn.sort().values
