"""The native operators among torch's own machinery: compilation, export, copies, processes, threads, casts."""

from __future__ import annotations

import copy
import faulthandler
import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from test_layers import flatten
from test_native import PLAIN, TOLERANCES, assert_near, leaves, run
from torch import Tensor, nn
from torch.distributed import TCPStore

from phased_lstm import PhasedGRU, PhasedLSTM, PhasedLSTMCell
from phased_lstm._parametrisation import CONSTANTS
from phased_lstm.ops import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
OPTIONS: dict[str, Any] = {"batch_first": True, "ratio_on": 0.4, "period_init_min": 2.0, "period_init_max": 9.0}


class Model(nn.Module):
    """A recurrent layer with a head, called with positional arguments alone."""

    def __init__(self, phased: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = phased(3, 9, **OPTIONS | options)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.rnn(x, times=times, lengths=lengths)[0])


def batch(rows: int = 4, steps: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, steps, 3), torch.rand(rows, steps, dtype=torch.float64).cumsum(1) * 4


def ragged(rows: int, steps: int) -> Tensor:
    return torch.arange(rows) * 5 % (steps + 1)


def results_and_gradients(rnn: nn.Module, x: Tensor, times: Tensor, **options: Any) -> dict[str, Tensor]:
    """Outputs, states and all gradients, input's and times' included, by name."""
    x, times = x.detach().requires_grad_(), times.detach().requires_grad_()
    rnn.zero_grad()
    outputs = flatten(rnn(x, times=times, **options))
    sum((part.square() * (index + 1)).sum() for index, part in enumerate(outputs)).backward()
    found = {f"output {index}": part for index, part in enumerate(outputs)} | {"input": x.grad, "times": times.grad}
    return found | {name: p.grad for name, p in rnn.named_parameters() if p.requires_grad}


def assert_same_bits(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value is not None, name
        assert torch.equal(got[name], value), name


def operator_arguments(
    lstm: bool, shared: bool, some_lengths: bool, reverse: bool, leak: float, keep_tape: bool
) -> tuple[Any, ...]:
    """The arguments of `phased_lstm::layer`; the operands ask for gradients where the tape is kept."""
    values = leaves(lstm, (5, 6, 3, 4), shared, lstm)
    values = [value if index in (1, *range(7, 10)) else value.float() for index, value in enumerate(values)]
    x, times, h0, *rest = values
    c0 = rest.pop(0) if lstm else None
    weight_ih, weight_hh, bias_ih = rest[:3]
    bias_hh = None if lstm else rest.pop(3)
    period, shift, ratio_on = (value.double() for value in rest[3:6])
    peephole = rest[6] if lstm else None
    operands = (x, times, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, peephole, period, shift, ratio_on)
    for operand in operands:
        if operand is not None:
            operand.requires_grad_(keep_tape)
    lengths = torch.tensor([6, 0, 3, 5, 1]) if some_lengths else None
    return (*operands[:2], lengths, *operands[2:], leak, 0, reverse, True, keep_tape, False)


OPERATOR_CASES = pytest.mark.parametrize(("some_lengths", "reverse", "leak"), [(False, False, 0.01), (True, True, 0.0)])


@pytest.mark.parametrize("lstm", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("keep_tape", [True, False])
@OPERATOR_CASES
def test_opcheck_of_the_layer(
    lstm: bool, shared: bool, keep_tape: bool, some_lengths: bool, reverse: bool, leak: float
) -> None:
    """Schema, derivative's registration, shapes and tracing with symbolic sizes, all as torch checks them."""
    arguments = operator_arguments(lstm, shared, some_lengths, reverse, leak, keep_tape)
    assert set(torch.library.opcheck(torch.ops.phased_lstm.layer.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("lstm", [True, False])
@pytest.mark.parametrize("keep_tape", [True, False])
def test_opcheck_of_a_layer_without_states(lstm: bool, keep_tape: bool) -> None:
    """And with final states (1, N, H)."""
    arguments = operator_arguments(lstm, False, False, False, 0.0, keep_tape)
    arguments = (*arguments[:3], None, None, *arguments[5:-1], True)
    assert set(torch.library.opcheck(torch.ops.phased_lstm.layer.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("lstm", [True, False])
def test_the_operator_has_second_derivatives_without_states(lstm: bool) -> None:
    """With final states (1, N, H) as with (N, H)."""
    found = []
    for layered in (False, True):
        torch.manual_seed(0)
        arguments = operator_arguments(lstm, False, False, False, 0.0, True)
        x = arguments[0]
        _, h_n, *_ = torch.ops.phased_lstm.layer(*arguments[:3], None, None, *arguments[5:-1], layered)
        (first,) = torch.autograd.grad(h_n.sin().sum(), x, create_graph=True)
        found += [first, *torch.autograd.grad(first.square().sum(), x)]
    assert found[0].any()
    assert found[1].any()
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@pytest.mark.parametrize("lstm", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("needed", [True, False])
@OPERATOR_CASES
def test_opcheck_of_the_way_back(
    lstm: bool, shared: bool, needed: bool, some_lengths: bool, reverse: bool, leak: float
) -> None:
    arguments = operator_arguments(lstm, shared, some_lengths, reverse, leak, True)
    arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    output, h_n, c_n, *kept = torch.ops.phased_lstm.layer(*arguments)
    x, times, lengths, _, _, *weights = arguments[:13]
    gradients = (torch.randn_like(output) if needed else None, torch.randn_like(h_n))
    raw_gate = torch.rand(8, 4) if needed else None
    arguments = (
        x, times, lengths, *weights, *arguments[13:16], h_n, *kept, *gradients,
        torch.randn_like(c_n) if lstm else None, needed, needed, raw_gate, CONSTANTS,
    )  # fmt: skip
    found = torch.library.opcheck(torch.ops.phased_lstm.layer_backward.default, arguments)
    assert set(found.values()) == {"SUCCESS"}


@PHASED
@pytest.mark.parametrize("some_lengths", [False, True], ids=["full", "ragged"])
def test_one_compilation_serves_all_lengths_bit_for_bit(phased: Any, some_lengths: bool) -> None:
    """A first call may fix what later calls show to vary, so a second compilation is allowed, a third is not."""
    torch._dynamo.reset()
    rnn = phased(3, 9, **OPTIONS)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, dynamic=True, backend=counter)
    for rows, steps in ((4, 6), (5, 11), (3, 30), (9, 2)):
        x, times = batch(rows, steps)
        options = {"lengths": ragged(rows, steps)} if some_lengths else {}
        got = results_and_gradients(compiled, x, times, **options)
        wanted = results_and_gradients(rnn, x, times, **options)
        assert_same_bits({name.removeprefix("_orig_mod."): value for name, value in got.items()}, wanted)
    assert counter.frame_count <= 2


def test_compiled_layers_take_more_lengths_than_dynamo_recompiles_for() -> None:
    """With fullgraph=True dynamo raises at its limit of recompilations, 8 in torch's defaults."""
    torch._dynamo.reset()
    rnn = PhasedLSTM(3, 9, **OPTIONS)
    compiled = torch.compile(rnn, fullgraph=True, dynamic=True, backend="eager")
    for steps in range(3, 13):
        x, times = batch(4, steps)
        lengths = ragged(4, steps)
        assert torch.equal(compiled(x, times=times, lengths=lengths)[0], rnn(x, times=times, lengths=lengths)[0])


@PHASED
def test_a_compiled_layer_is_one_operator_a_direction(phased: Any) -> None:
    torch._dynamo.reset()
    seen: list[str] = []

    def recorder(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    rnn = phased(3, 9, 2, **OPTIONS, bidirectional=True)
    x, times = batch(4, 300)
    compiled = torch.compile(rnn, fullgraph=True, backend=recorder)
    assert torch.equal(compiled(x, times=times)[0], rnn(x, times=times)[0])
    assert sum("phased_lstm.layer" in target for target in seen) == 4
    # Not a node for each step.
    assert len(seen) < 300


# Inductor's import runs into a deprecated part of torch.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_changes_no_bit() -> None:
    torch._dynamo.reset()
    rnn = PhasedLSTM(3, 9, **OPTIONS)
    compiled = torch.compile(rnn, fullgraph=True, dynamic=True)
    for rows, steps in ((4, 6), (5, 11)):
        x, times = batch(rows, steps)
        got = results_and_gradients(compiled, x, times)
        wanted = results_and_gradients(rnn, x, times)
        assert_same_bits({name.removeprefix("_orig_mod."): value for name, value in got.items()}, wanted)


@PHASED
def test_a_compiled_model_trains_bit_for_bit(phased: Any) -> None:
    torch._dynamo.reset()
    model = Model(phased)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1, foreach=False) for m in (model, twin)]
    for rows, steps in ((4, 6), (5, 11), (3, 30)):
        x, times = batch(rows, steps)
        target = torch.randn(rows, steps, 2)
        for called, optimizer in zip((compiled, twin), optimizers, strict=True):
            optimizer.zero_grad()
            (called(x, times) - target).square().mean().backward()
            optimizer.step()
    for (name, got), wanted in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(got, wanted), name


@PHASED
@pytest.mark.parametrize("some_lengths", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "nonstrict"])
def test_an_exported_program_serves_other_sizes_and_survives_a_file(
    phased: Any, some_lengths: bool, strict: bool
) -> None:
    model = Model(phased).eval()
    rows, steps = torch.export.Dim("rows", min=2, max=100), torch.export.Dim("steps", min=2, max=1000)
    arguments, shapes = batch(4, 6), [{0: rows, 1: steps}, {0: rows, 1: steps}]
    if some_lengths:
        arguments, shapes = (*arguments, ragged(4, 6)), [*shapes, {0: rows}]
    with torch.no_grad():
        program = torch.export.export(model, arguments, dynamic_shapes=tuple(shapes), strict=strict)
        held = io.BytesIO()
        torch.export.save(program, held)
        held.seek(0)
        loaded = torch.export.load(held)
        assert sum("phased_lstm.layer" in str(node.target) for node in loaded.graph.nodes) == 1
        for sizes in ((4, 6), (9, 25), (3, 90), (2, 3)):
            arguments = (*batch(*sizes), ragged(*sizes)) if some_lengths else batch(*sizes)
            wanted = model(*arguments)
            assert torch.equal(program.module()(*arguments), wanted)
            assert torch.equal(loaded.module()(*arguments), wanted)
            x, *others = arguments
            assert torch.equal(loaded.module()(x.transpose(0, 1).contiguous().transpose(0, 1), *others), wanted)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "nonstrict"])
def test_an_exported_program_serves_as_many_sequences_as_steps(strict: bool) -> None:
    model = Model(PhasedLSTM).eval()
    rows, steps = torch.export.Dim("rows", min=2, max=100), torch.export.Dim("steps", min=2, max=1000)
    shapes = ({0: rows, 1: steps}, {0: rows, 1: steps})
    with torch.no_grad():
        program = torch.export.export(model, batch(4, 6), dynamic_shapes=shapes, strict=strict)
        x, times = batch(5, 5)
        assert torch.equal(program.module()(x, times), model(x, times))


def test_a_program_exported_for_training_gives_the_same_gradients() -> None:
    model = Model(PhasedLSTM)
    rows, steps = torch.export.Dim("rows", min=2, max=100), torch.export.Dim("steps", min=2, max=1000)
    shapes = ({0: rows, 1: steps}, {0: rows, 1: steps})
    trainable = torch.export.export(model, batch(4, 6), dynamic_shapes=shapes, strict=True).module()
    x, times = batch(7, 20)
    found = []
    for called in (trainable, model):
        called.zero_grad()
        called(x, times).square().sum().backward()
        found.append({name: p.grad for name, p in called.named_parameters() if p.requires_grad})
    assert_same_bits(*found)


def through_a_file(rnn: nn.Module) -> nn.Module:
    held = io.BytesIO()
    torch.save(rnn, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def through_a_state_dict(rnn: nn.Module) -> nn.Module:
    held = io.BytesIO()
    torch.save(rnn.state_dict(), held)
    held.seek(0)
    fresh = type(rnn)(3, 9, 2, **OPTIONS)
    # It has values of other parameters, which must not outlive the loading.
    with torch.no_grad():
        fresh(torch.randn(2, 5, 3), times=torch.arange(5))
    fresh.load_state_dict(torch.load(held, weights_only=True))
    return fresh


@PHASED
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda rnn: pickle.loads(pickle.dumps(rnn)), through_a_file, through_a_state_dict],
    ids=["deepcopy", "copy", "pickle", "file", "state_dict"],
)
def test_kept_gate_values_do_not_travel(phased: Any, duplicate: Any) -> None:
    rnn = phased(3, 9, 2, **OPTIONS)
    rnn.gate_l1.assign_(origin=3)
    x, times = batch()
    with torch.no_grad():
        wanted = flatten(rnn(x, times=times))
    trained = results_and_gradients(rnn, x, times)
    assert rnn._kept
    other = duplicate(rnn)
    # What a state dict is loaded into keeps values of its own former parameters, and may not use them.
    assert not other._kept or duplicate is through_a_state_dict
    with torch.no_grad():
        for got, expected in zip(flatten(other(x, times=times)), wanted, strict=True):
            assert torch.equal(got, expected)
    assert other._kept is not rnn._kept
    assert_same_bits(results_and_gradients(other, x, times), trained)
    assert not any("kept" in name for name in other.state_dict())


def data_parallel_gradients(rank: int, port: int, path: str) -> None:
    """One process of two: gradients of its half of the batch, averaged over both, into a file."""
    faulthandler.dump_traceback_later(50, exit=True)
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model, (x, times) = data_parallel_case()
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    # A second pass raises if some parameter had no gradient in the first one.
    for _ in range(2):
        model.zero_grad()
        wrapped(x[rank::2], times[rank::2]).square().mean().backward()
    torch.save({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, path)
    torch.distributed.barrier()
    # Threads of gloo's now and then hang or abort an ordinary exit.
    os._exit(0)


def data_parallel_case() -> tuple[Model, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = Model(PhasedLSTM, num_layers=2, peephole=True, trainable_ratio_on=True)
    # A unit that never opens gets gradients of zero, not none.
    model.rnn.gate_l0.assign_(period=torch.tensor([1e6, *range(2, 10)]), shift=torch.tensor([1e5] + [0.3] * 8))
    return model, batch(8, 12)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    # It takes a free port by itself.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    script = "import sys, test_native_torch as t; t.data_parallel_gradients(*map(int, sys.argv[1:3]), sys.argv[3])"
    processes = []
    for rank in range(2):
        command = [sys.executable, "-c", script, str(rank), str(store.port), str(tmp_path / f"{rank}.pt")]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error.decode()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_same_bits(second, first)
    model, (x, times) = data_parallel_case()
    model(x, times).square().mean().backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert first.keys() == wanted.keys()
    assert_near(list(first.values()), list(wanted.values()), TOLERANCES[torch.float32][1])


@pytest.mark.parametrize("lstm", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("leak", [0.0, 0.01])
def test_the_same_bits_for_any_number_of_threads(lstm: bool, shared: bool, leak: float) -> None:
    values = [v if i == 1 else v.float() for i, v in enumerate(leaves(lstm, (67, 40, 3, 21), shared, lstm))]
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(native, values, lstm, **PLAIN | {"leak": leak, "lengths": ragged(67, 40)}))
    finally:
        torch.set_num_threads(1)
    for outputs, gradients in results[1:]:
        for a, b in zip(results[0][0] + results[0][1], outputs + gradients, strict=True):
            assert torch.equal(a, b)


@PHASED
@pytest.mark.parametrize("shared", [True, False])
def test_calls_from_several_threads_at_once_give_the_bits_of_calls_alone(phased: Any, shared: bool) -> None:
    rnn = phased(3, 33, **OPTIONS, leak=0.01)
    inputs = [batch(9, 50) for _ in range(16)]
    inputs = [(x, times[0] if shared else times) for x, times in inputs]

    def job(index: int) -> list[Tensor]:
        x, times = inputs[index]
        x = x.clone().requires_grad_()
        outputs = flatten(rnn(x, times=times))
        gradients = torch.autograd.grad(outputs[0].square().sum(), [x, rnn.weight_hh_l0, rnn.gate_l0.raw_period])
        with torch.no_grad():
            return [*outputs, *gradients, *flatten(rnn(x, times=times))]

    alone = [job(index) for index in range(16)]
    rnn._kept.clear()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(job, range(16)))
    for got, wanted in zip(together, alone, strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)


@PHASED
@pytest.mark.parametrize("shared", [True, False])
def test_autocast_rounds_as_the_reference_does(phased: Any, shared: bool) -> None:
    rnn = phased(3, 9, 2, **OPTIONS)
    twin = copy.deepcopy(rnn)
    rnn.backend, twin.backend = "native", "reference"
    x, times = batch(6, 40)
    times = times[0] if shared else times
    found = []
    for layer in (rnn, twin):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = flatten(layer(x, times=times))
        assert {part.dtype for part in outputs} == {torch.float32}
        outputs[0].sum().backward()
        found.append((outputs, [p.grad for p in layer.parameters() if p.requires_grad]))
    assert_near(found[0][0], found[1][0], TOLERANCES[torch.float32][0])
    # Gradients of the rounded weights come back through the cast, rounded too: to neighbours, where sums differ.
    assert_near(found[0][1], found[1][1], torch.finfo(torch.bfloat16).eps)
    with torch.no_grad():
        exact = flatten(rnn(x, times=times))[0]
    # The rounding is there.
    assert (exact - found[0][0][0]).abs().max() > 1e-4


@pytest.mark.parametrize("lstm", [True, False])
@pytest.mark.parametrize("rows", [None, 3])
def test_opcheck_of_the_step(lstm: bool, rows: int | None) -> None:
    lead = () if rows is None else (rows,)
    gates, one = 4 if lstm else 3, torch.ones(5, dtype=torch.float64)
    h = torch.randn(*lead, 5)
    weights = (torch.randn(gates * 5, 2), torch.randn(gates * 5, 5), torch.randn(gates * 5), torch.randn(gates * 5))
    operands = (torch.randn(*lead, 2), 0.5, h, h.clone() if lstm else None, *weights, None, one * 7, one, one * 0.5, 0)
    torch.library.opcheck(torch.ops.phased_lstm.step.default, operands)


def test_strided_parameters_of_a_cell_are_as_good_as_dense_ones() -> None:
    cell = PhasedLSTMCell(3, 5, ratio_on=1.0).eval()
    x, state = torch.randn(2, 3), (torch.randn(2, 5), torch.randn(2, 5))
    with torch.no_grad():
        wanted = cell(x, state, 1.0)
        for parameter in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh):
            parameter.data = torch.stack([parameter, parameter], -1)[..., 0]
            assert not parameter.is_contiguous()
        assert torch.equal(cell(x, state, 1.0)[0], wanted[0])
