"""Outputs and gradients of the historic TensorFlow cell (tf.contrib.rnn.PhasedLSTMCell)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import relative_error
from torch import Tensor

from phased_lstm import PhasedLSTM
from phased_lstm.functional import phased_lstm

ARGUMENTS = ("x", "times", "h0", "c0", "weight_ih", "weight_hh", "bias", "period", "shift", "ratio_on")
RESULTS = ("output", "h_n", "c_n")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
CASES = pytest.mark.parametrize("case", range(4))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def load(case: int) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "tf_contrib_phased_lstm.npz") as archive:
        prefix = f"case{case}/"
        return {key.removeprefix(prefix): torch.tensor(archive[key]) for key in archive if key.startswith(prefix)}


@CASES
@DTYPES
def test_functional(case: int, dtype: torch.dtype) -> None:
    golden = load(case)
    leaves = {name: golden[name] if name == "times" else golden[name].to(dtype).requires_grad_() for name in ARGUMENTS}
    results = dict(zip(RESULTS, phased_lstm(*leaves.values(), leak=golden["leak"].item()), strict=True))
    for name, result in results.items():
        assert result.dtype == dtype
        assert relative_error(result, golden[name]) <= TOLERANCE[dtype], name
    ((results["output"] * golden["loss_weight"]).sum() + results["c_n"].sum()).backward()
    listed = [key.removeprefix("grad_") for key in golden if key.startswith("grad_")]
    assert sorted(listed) == ["bias", "c0", "h0", "ratio_on", "shift", "weight_hh", "weight_ih", "x"]
    for name in listed:
        assert relative_error(leaves[name].grad, golden[f"grad_{name}"]) <= TOLERANCE[dtype], name


@CASES
def test_layer(case: int) -> None:
    """The layer, with the leak of training mode and gate values set through `assign_`."""
    golden = load(case)
    batch, _, features = golden["x"].shape
    hidden = golden["h0"].shape[1]
    rnn = PhasedLSTM(features, hidden, batch_first=True, leak=golden["leak"].item(), dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(golden["weight_ih"])
        rnn.weight_hh_l0.copy_(golden["weight_hh"])
        rnn.bias_ih_l0.copy_(golden["bias"])
        rnn.bias_hh_l0.zero_()
    rnn.gate_l0.assign_(period=golden["period"], shift=golden["shift"], ratio_on=golden["ratio_on"])
    state = (golden["h0"].double().unsqueeze(0), golden["c0"].double().unsqueeze(0))
    output, (h_n, c_n) = rnn(golden["x"].double(), state, golden["times"])
    assert h_n.shape == (1, batch, hidden)
    for result, name in ((output, "output"), (h_n[0], "h_n"), (c_n[0], "c_n")):
        assert relative_error(result, golden[name]) <= TOLERANCE[torch.float64], name
