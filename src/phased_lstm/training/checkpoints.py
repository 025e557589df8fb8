"""Models and training states as safetensors files: tensors and JSON, nothing that runs code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunError, missing_extra
from ..files import replacing

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as serialize
except ImportError as error:
    raise missing_extra("train", "safetensors") from error

FORMAT_VERSION = 1
_MODEL, _OPTIMIZER, _GENERATOR, _CUDA_GENERATOR, _EXTRA = "model.", "optimizer.", "rng", "rng.cuda", "extra."


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata to a file that appears whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"phased_lstm": json.dumps({"format": FORMAT_VERSION} | metadata)}
    try:
        with replacing(path) as file:
            file.write(serialize(contiguous, metadata=header))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        RunError: the file is missing, damaged, not ours, or from a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(json.loads((file.metadata() or {})["phased_lstm"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        version = int(metadata["format"])
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise RunError(f"{path} is damaged or was not written by phased-lstm: {error}") from error
    if version > FORMAT_VERSION:
        raise RunError(f"{path} has format {version}, this version reads up to {FORMAT_VERSION}: upgrade phased-lstm")
    return tensors, metadata


def save_model(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a model's state dict."""
    save_tensors(path, model.state_dict(), metadata)


def load_model(path: Path, model: nn.Module) -> dict[str, Any]:
    """Load a state dict into a model of the same configuration; returns the metadata.

    Raises:
        RunError: the file cannot be read or does not fit the model.
    """
    tensors, metadata = load_tensors(path)
    _fit(path, model, tensors)
    return metadata


def save_checkpoint(
    path: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] = MappingProxyType({}),
    run: str = "",
) -> None:
    """Write all that training needs to go on: model, optimiser, random state, step, and what else the task has.

    `run` tells the run from others.
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        for name, value in entries.items():
            tensors[f"{_OPTIMIZER}{index}.{name}"] = torch.as_tensor(value)
    tensors[_GENERATOR] = torch.get_rng_state()
    device = _cuda_device(model)
    if device is not None:
        tensors[_CUDA_GENERATOR] = torch.cuda.get_rng_state(device)
    tensors |= {_EXTRA + name: tensor for name, tensor in extra.items()}
    save_tensors(path, tensors, {"step": step, "optimizer": type(optimizer).__name__, "run": run})


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    restore: Callable[[dict[str, Tensor]], None] | None = None,
    run: str = "",
) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of steps done.

    Hyperparameters of the optimiser are those it was built with. `restore` takes what else the task had.

    Raises:
        RunError: the file cannot be read, does not fit the model or the optimiser, or is of another run.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("optimizer") != type(optimizer).__name__ or _GENERATOR not in tensors:
        raise RunError(f"{path} is not a checkpoint of {type(optimizer).__name__}")
    found = metadata.get("run")
    if run and found and found != run:
        raise RunError(
            f"{path} is of another configuration or other data than the run's: put its own files back, or start anew "
            f"with --overwrite"
        )
    _fit(path, model, _part(tensors, _MODEL))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in _part(tensors, _OPTIMIZER).items():
            index, key = name.split(".", 1)
            # The optimiser itself would notice a wrong shape in the next step only.
            if tensor.dim() and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
            state.setdefault(int(index), {})[key] = tensor
        if len({frozenset(entries) for entries in state.values()}) > 1:
            raise ValueError("the optimiser's state is not complete")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if restore is not None:
            restore(_part(tensors, _EXTRA))
        torch.set_rng_state(tensors[_GENERATOR])
        # A run begun on another device goes on with the device's own generator.
        device = _cuda_device(model)
        if device is not None and _CUDA_GENERATOR in tensors:
            torch.cuda.set_rng_state(tensors[_CUDA_GENERATOR], device)
        return int(metadata["step"])
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _cuda_device(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters() if parameter.is_cuda), None)


def _fit(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{path} is of another configuration: {' '.join(str(error).split())}") from error
