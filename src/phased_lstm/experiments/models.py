"""The sequence model that the experiments share: one recurrent layer or stack, and a linear head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layers import PhasedGRU, PhasedLSTM

CELLS = ("PhasedLSTM", "PhasedGRU", "LSTM", "GRU")
TIME_FEATURES = ("none", "raw", "delta", "normalised")


class SequenceModel(nn.Module):
    """A recurrent network over padded sequences, with a linear layer on its last or on every state.

    Phased cells get times through their gate; others may get them as one more input feature.

    Args:
        cell: one of `CELLS`.
        input_size: features of a step, time not counted.
        hidden_size: units of a layer.
        output_size: outputs of the head.
        time_feature: what a step tells of time besides the gate: "none"; "raw", the time itself; "delta", the
            time since the step before (0 at the first); "normalised", the time divided by `time_scale`.
        time_scale: unit of "delta" and "normalised", in the unit of the times.
        batch_norm: normalise the features of a step (time among them) over the valid steps of a batch.
        per_step: apply the head to every state rather than to the last.
        num_layers: stacked layers.
        forget_bias: added to the forget gate's initial bias of an LSTM.
        gate: keyword arguments of `PhasedLSTM` or `PhasedGRU`.

    Raises:
        ValueError: an unknown cell or time feature.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        time_feature: str = "none",
        time_scale: float = 1.0,
        batch_norm: bool = False,
        per_step: bool = False,
        num_layers: int = 1,
        forget_bias: float = 0.0,
        gate: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell should be one of {', '.join(CELLS)}, got {cell!r}")
        if time_feature not in TIME_FEATURES:
            raise ValueError(f"time_feature should be one of {', '.join(TIME_FEATURES)}, got {time_feature!r}")
        self.time_feature, self.time_scale, self.per_step = time_feature, time_scale, per_step
        width = input_size + (time_feature != "none")
        self.norm = nn.BatchNorm1d(width) if batch_norm else None
        classes = {"PhasedLSTM": PhasedLSTM, "PhasedGRU": PhasedGRU, "LSTM": nn.LSTM, "GRU": nn.GRU}
        options = (gate or {}) if cell.startswith("Phased") else {}
        self.rnn: Any = classes[cell](width, hidden_size, num_layers, batch_first=True, **options)
        self.head = nn.Linear(hidden_size, output_size)
        if "LSTM" in cell and forget_bias:
            with torch.no_grad():
                for layer in range(num_layers):
                    getattr(self.rnn, f"bias_ih_l{layer}")[hidden_size : 2 * hidden_size] += forget_bias

    @property
    def is_phased(self) -> bool:
        return isinstance(self.rnn, (PhasedLSTM, PhasedGRU))

    def forward(self, values: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            values: (N, L, input_size), padded at the end.
            times: (N, L) or (L,) absolute times.
            lengths: (N,) valid steps, at least 1 each; None for L.

        Returns:
            (N, output_size), or (N, L, output_size) with `per_step`, where padding holds no meaning.
        """
        features = self._features(values, times, lengths)
        if self.is_phased:
            output, state = self.rnn(features, None, times, lengths=lengths, return_sequence=self.per_step)
            if output is not None:
                return self.head(output)
            hidden = state[0] if isinstance(state, tuple) else state
            return self.head(hidden[-1])
        output, _ = self.rnn(features)
        if self.per_step:
            return self.head(output)
        # One direction: what comes after the last valid step does not reach its output.
        if lengths is None:
            return self.head(output[:, -1])
        return self.head(output[torch.arange(len(output), device=output.device), lengths - 1])

    def _features(self, values: Tensor, times: Tensor, lengths: Tensor | None) -> Tensor:
        if self.time_feature != "none":
            stamps = times.expand(values.shape[:2])
            if self.time_feature == "delta":
                stamps = torch.diff(stamps, dim=1, prepend=stamps[:, :1])
            scale = 1.0 if self.time_feature == "raw" else self.time_scale
            values = torch.cat([values, (stamps / scale).unsqueeze(-1).to(values.dtype)], dim=-1)
        if self.norm is None:
            return values
        if lengths is None:
            return self.norm(values.flatten(0, 1)).view_as(values)
        valid = torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(1)
        normal = torch.zeros_like(values)
        normal[valid] = self.norm(values[valid])
        return normal

    @torch.no_grad()
    def openness(self, times: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
        """Mean share of open steps and mean number of openings' steps of a unit in a sequence; empty without a gate.

        Args:
            times: (N, L) or (L,).
            lengths: (N,) with times (N, L).
        """
        if not self.is_phased:
            return {}
        device = self.head.weight.device
        times, lengths = times.to(device), None if lengths is None else lengths.to(device)
        shares = torch.stack([gate.openness(times, lengths).fraction for gate in self.rnn.gates])
        steps = times.shape[-1] if lengths is None else float(lengths.double().mean())
        share = float(shares.mean())
        return {
            "openness": share,
            "updates_per_unit": share * steps,
            "never_open_units": float((shares == 0).double().mean()),
        }
