"""scikit-learn estimators for sequences of unequal length at irregular times. Need the extra `train`.

They train with the loop of the commands rather than with skorch: batches are ragged and of similar length, scale and
gates are fitted to the training part of each split, and a network is the same folder whoever trained it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._checks import check_flag, check_number, check_size
from .data.encoders import needs_double
from .data.events import EventBatch
from .data.inputs import as_static, back_in_time, gather, in_order_of_time, narrowest, warn_of_form
from .data.loading import IGNORED_CLASS, EventDataset
from .errors import missing_extra
from .models import NetworkConfig, SequenceNetwork, measured_channels, suggested_ratio, warn_of_absent_channels
from .training.diagnosis import cause_of_nan
from .training.fitting import FitConfig, SequenceTask, check_switch, fit_in_memory, predict
from .training.splits import split_rows
from .training.targets import as_classes, as_numbers, class_numbers

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise missing_extra("train", "scikit-learn") from error


@dataclass(frozen=True)
class _Form:
    """What must be the same at prediction as in training.

    Attributes:
        time_unit: of times that were dates or durations.
        numbers: whether times were numbers, of a unit that is not known.
        double: whether values are float64.
        double_static: whether static features are.
    """

    time_unit: str | None = None
    double: bool | None = None
    double_static: bool | None = None
    numbers: bool = False


class _PhasedEstimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share."""

    def __init__(
        self,
        *,
        cell: str = "PhasedLSTM",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        head_size: int | None = None,
        ratio_on: float | None = None,
        leak: float = 0.0,
        oscillation: str = "triangle",
        peephole: bool = False,
        forget_bias: float = 1.0,
        per_step: bool = False,
        epochs: int = 50,
        batch_size: int = 32,
        lr: float = 5e-3,
        warmup: int | None = None,
        cosine: bool = True,
        clip_grad_norm: float = 1.0,
        weight_decay: float = 1e-4,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        patience: int = 10,
        monitor: str = "loss",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.head_size = head_size
        self.ratio_on = ratio_on
        self.leak = leak
        self.oscillation = oscillation
        self.peephole = peephole
        self.forget_bias = forget_bias
        self.per_step = per_step
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.warmup = warmup
        self.cosine = cosine
        self.clip_grad_norm = clip_grad_norm
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.monitor = monitor
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        return tags

    def _data(self, X: Any, static: Any, form: _Form | None = None) -> tuple[EventDataset, _Form]:
        """The sequences of X with their static features, by time; and their form, decided if none is given."""
        per_step = check_flag("per_step", self.per_step)
        gathered = gather(X, keep_empty_steps=per_step, time_unit=None if form is None else form.time_unit)
        events, own = gathered.events.to("cpu"), gathered.static
        if static is not None:
            if own is not None:
                raise ValueError("X has static features, and static= gives some again: give them once")
            own = as_static(static, len(events))
        # No columns are as good as none.
        events = EventBatch._unchecked(events.values.detach(), events.times.detach(), events.offsets)
        own = None if own is None or not own.shape[1] else own.detach().cpu()
        if form is not None and form.time_unit and gathered.from_pairs and gathered.time_unit is None:
            warnings.warn(
                f"times of X are numbers, and were dates in training: they are taken for counts of {form.time_unit}",
                stacklevel=4,
            )
        if form is not None and form.time_unit is None and gathered.time_unit is not None:
            if getattr(form, "numbers", False):
                raise TypeError(
                    "times of X are dates or durations, and were numbers in training: give numbers of the same unit "
                    "and origin"
                )
            warnings.warn(
                f"times of X are dates or durations, and in training came in a batch: they are taken as counts of "
                f"{gathered.time_unit}",
                stacklevel=4,
            )
        if form is None:
            warn_of_form(X, events)
            form = _Form(
                gathered.time_unit, needs_double(events.values), own is not None and needs_double(own),
                numbers=gathered.from_pairs and gathered.time_unit is None,
            )  # fmt: skip
        back = back_in_time(events)
        if back is not None and per_step:
            raise ValueError(
                f"sequence {back} of X goes back in time: sort its steps, and the entries of y with them, as per_step "
                f"has one for each"
            )
        events = in_order_of_time(events).to(narrowest(events.values, form.double))
        beyond = events.values.isinf().any(dim=1).nonzero().flatten()
        if len(beyond):
            number = int(torch.searchsorted(events.offsets, beyond[0], right=True)) - 1
            raise ValueError(f"sequence {number} of X has values beyond {torch.finfo(events.values.dtype).max:.3g}")
        return EventDataset(events, None, None if own is None else own.to(narrowest(own, form.double_static))), form

    @property
    def _fitted_form(self) -> _Form:
        # Estimators pickled before there was such a thing have none.
        return getattr(self, "_form", _Form())

    def _known_data(self, X: Any, static: Any) -> EventDataset:
        """The same, checked against what the network was fitted to."""
        check_is_fitted(self, "network_")
        data, _ = self._data(X, static, self._fitted_form)
        found = data.events.num_features
        if found != self.n_features_in_:
            shape = tuple(getattr(X, "shape", ()))
            swapped = len(shape) == 3 and shape[1] == self.n_features_in_
            raise ValueError(
                f"X has {found} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                "input" + (f": an array is (N, T, F), and {shape} may be (N, F, T)" if swapped else "")
            )
        expected = len(self.network_.config.static)
        found = 0 if data.static is None else data.static.shape[1]
        if found != expected:
            raise ValueError(f"{type(self).__name__} was fitted with {expected} static features, got {found}")
        return data

    def _outputs(self, data: EventDataset) -> Tensor:
        warn_of_absent_channels(self.network_, measured_channels(data.events), stacklevel=3)
        outputs = predict(self.network_, data, check_size("batch_size", self.batch_size))
        wrong = (~outputs.isfinite()).any(dim=1).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            number = int(torch.searchsorted(data.events.offsets, row, right=True)) - 1 if self.per_step else row
            cause = cause_of_nan(self.network_, data[[number]]) or "the network's weights are not finite: fit it again"
            raise ValueError(f"the prediction for sequence {number} of X is not finite: {cause}")
        return outputs

    def _lengths(self, events: EventBatch) -> list[int] | None:
        return events.lengths.tolist() if self.per_step else None

    def _require_y(self, y: Any) -> None:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")

    def _split(self, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers of the sequences for training, and of those for validation."""
        if not check_switch("early_stopping", self.early_stopping):
            return torch.arange(count), torch.arange(0)
        fraction = check_number("validation_fraction", self.validation_fraction)
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"validation_fraction should be between 0 and 1, got {fraction}")
        classes = labels if isinstance(self, ClassifierMixin) and not self.per_step else None
        try:
            return split_rows(count, fraction, seed, classes)
        except ValueError as error:
            raise ValueError(f"{error} for validation: early_stopping=False uses all") from error

    def _network_config(self, data: EventDataset, outputs: int, target: Any) -> NetworkConfig:
        ratio = suggested_ratio(data.lengths) if self.ratio_on is None else self.ratio_on
        head = (self.hidden_size if self.per_step else 0) if self.head_size is None else self.head_size
        cell: Any = self.cell
        oscillation: Any = self.oscillation
        return NetworkConfig(
            channels=tuple(map(str, range(data.events.num_features))),
            outputs=outputs, target=target,
            static=() if data.static is None else tuple(map(str, range(data.static.shape[1]))),
            per_step=self.per_step, cell=cell, hidden_size=self.hidden_size, num_layers=self.num_layers,
            bidirectional=self.bidirectional, dropout=self.dropout, head_size=head, ratio_on=ratio,
            leak=self.leak, oscillation=oscillation, peephole=self.peephole, forget_bias=self.forget_bias,
        )  # fmt: skip

    def _fit_config(self, seed: int) -> FitConfig:
        return FitConfig(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, warmup=self.warmup, cosine=self.cosine,
            clip_grad_norm=self.clip_grad_norm, weight_decay=self.weight_decay, patience=self.patience,
            monitor=self.monitor, seed=seed,
        )  # fmt: skip

    def _fit(
        self, data: EventDataset, form: _Form, labels: Tensor, outputs: int, target: Any, class_weight: Any = None
    ) -> Self:
        """Split, build, train."""
        seed = int(check_random_state(self.random_state).randint(1 << 30))
        whole = EventDataset(data.events, labels, data.static, per_step=self.per_step)
        train_rows, valid_rows = self._split(labels, len(data), seed)
        train = whole[train_rows]
        valid = whole[valid_rows] if len(valid_rows) else None
        # What is random here is ours alone: the caller's generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = SequenceNetwork(self._network_config(train, outputs, target))
            network.fit_(train, targets=train.labels if target == "regression" else None)
            task = SequenceTask(network, train, valid, self._fit_config(seed), class_weight=class_weight)
            self.n_epochs_ = fit_in_memory(task, progress=self.verbose)
        self.n_features_in_ = data.events.num_features
        self._form = form
        self.network_ = network.eval()
        self._optimizer: torch.optim.Optimizer | None = None
        return self

    def _partial_fit(
        self, data: EventDataset, form: _Form, labels: Tensor, outputs: int, target: Any, weight: Any = None
    ) -> Self:
        """One epoch over all of the data at a constant rate."""
        whole = EventDataset(data.events, labels, data.static, per_step=self.per_step)
        seed = int(check_random_state(self.random_state).randint(1 << 30)) + getattr(self, "n_epochs_", 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not hasattr(self, "network_"):
                network = SequenceNetwork(self._network_config(whole, outputs, target))
                network.fit_(whole, targets=labels if target == "regression" else None)
                self.network_, self._optimizer, self.n_epochs_, self._form = network, None, 0, form
                self.n_features_in_ = data.events.num_features
            config = self._fit_config(seed)
            config = FitConfig(**(vars(config) | {"epochs": 1, "cosine": False, "warmup": 0}))
            task = SequenceTask(self.network_, whole, None, config, class_weight=weight, optimizer=self._optimizer)
            fit_in_memory(task)
        self._optimizer = task.optimizer
        self.n_epochs_ += 1
        self.network_.eval()
        return self

    def _by_sequence(self, events: EventBatch, rows: NDArray[Any]) -> Any:
        return np.split(rows, events.offsets[1:-1].numpy()) if self.per_step else rows


def _reusable(X: Any) -> Any:
    """X as it is, or as a list where it could be gone through once only."""
    return list(X) if isinstance(X, Iterator) else X


class PhasedLSTMClassifier(ClassifierMixin, _PhasedEstimator):  # type: ignore[misc]
    """Classifies sequences, or their steps.

    X is an `EventBatch`; an `EventDataset`, which brings static features along; a list of (values (L, F), times (L,))
    pairs; or an array (N, T, F), NaN where nothing was measured, at times 0, 1, 2, ... y has a class for each
    sequence, or with `per_step` an array of classes for each, None or NaN at steps without one.

    Args:
        cell: "PhasedLSTM" or "PhasedGRU".
        hidden_size: units of a layer.
        num_layers: stacked layers.
        bidirectional: whether layers run in both directions.
        dropout: between layers and before the head.
        head_size: units of a hidden layer in the head, 0 for none; None: none, with per_step `hidden_size`.
        ratio_on: open ratio of the gates; None: 0.05 for sequences of 500 steps or more, 0.1 from 100, else 0.2.
        leak: of the gates in training.
        oscillation: "triangle", "square" or "cosine".
        peephole: whether an LSTM has peephole connections.
        forget_bias: initial bias of an LSTM's forget gate.
        per_step: whether each step has a class.
        epochs: passes over the data, at most.
        batch_size: sequences of a batch.
        lr: highest learning rate of AdamW.
        warmup: steps over which it rises; None: a twentieth of all, 100 at most.
        cosine: whether it then falls to zero along a cosine.
        clip_grad_norm: limit of the gradient's norm, 0 for none.
        weight_decay: of AdamW.
        class_weight: None, "balanced", or a dict by class.
        early_stopping: whether a part is kept for validation, and the weights that do best on it in the end.
        validation_fraction: that part.
        patience: epochs without a better figure after which training stops; 0: it does not.
        monitor: that figure: "loss", "accuracy", "balanced_accuracy", "auroc" or "auprc".
        random_state: seed of everything random.
        verbose: whether the losses of each epoch are printed.

    Attributes:
        classes_: (C,) the classes.
        network_: the trained `SequenceNetwork`; `network_.save(folder)` keeps it.
        n_features_in_: number of channels.
        n_epochs_: epochs done.
    """

    def __init__(
        self,
        *,
        cell: str = "PhasedLSTM",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        head_size: int | None = None,
        ratio_on: float | None = None,
        leak: float = 0.0,
        oscillation: str = "triangle",
        peephole: bool = False,
        forget_bias: float = 1.0,
        per_step: bool = False,
        epochs: int = 50,
        batch_size: int = 32,
        lr: float = 5e-3,
        warmup: int | None = None,
        cosine: bool = True,
        clip_grad_norm: float = 1.0,
        weight_decay: float = 1e-4,
        class_weight: Any = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        patience: int = 10,
        monitor: str = "loss",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            cell=cell, hidden_size=hidden_size, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout,
            head_size=head_size, ratio_on=ratio_on, leak=leak, oscillation=oscillation, peephole=peephole,
            forget_bias=forget_bias, per_step=per_step, epochs=epochs, batch_size=batch_size, lr=lr, warmup=warmup,
            cosine=cosine, clip_grad_norm=clip_grad_norm, weight_decay=weight_decay, early_stopping=early_stopping,
            validation_fraction=validation_fraction, patience=patience, monitor=monitor, random_state=random_state,
            verbose=verbose,
        )  # fmt: skip
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, static: Any = None) -> Self:
        """Train anew.

        Args:
            X: N sequences.
            y: their classes.
            static: (N, G) features that do not change over a sequence, NaN where missing.

        Raises:
            TypeError, ValueError: X, y or static of another form or number, a single class, or a parameter out of
                range.
        """
        data, form = self._data(X, static)
        flat, missing = self._classes_of(data.events, y)
        classes = np.unique(flat[~missing])
        if len(classes) < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 classes, got {len(classes)}: {classes.tolist()}")
        self.classes_ = classes
        labels = class_numbers(flat, missing, classes, IGNORED_CLASS)
        return self._fit(data, form, labels, len(classes), "classification", self._weights(labels))

    def partial_fit(self, X: Any, y: Any, classes: Any = None, static: Any = None) -> Self:
        """Train one epoch on these sequences, at a constant learning rate; the first call fixes scale and gates.

        Args:
            X: N sequences.
            y: their classes.
            classes: all classes that any call will have; needed by the first.
            static: as in `fit`.

        Raises:
            ValueError: as `fit`; or a class that is not among `classes`.
        """
        fresh = not hasattr(self, "network_")
        if fresh and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        data, form = self._data(X, static) if fresh else (self._known_data(X, static), self._fitted_form)
        flat, missing = self._classes_of(data.events, y)
        if fresh:
            self.classes_ = np.unique(as_classes(classes, len(classes))[0])
        labels = class_numbers(flat, missing, self.classes_, IGNORED_CLASS)
        return self._partial_fit(data, form, labels, len(self.classes_), "classification", self._weights(labels))

    def predict_proba(self, X: Any, static: Any = None) -> Any:
        """Return probabilities (N, C) in the order of `classes_`, or with per_step a list of (L, C)."""
        data = self._known_data(X, static)
        return self._by_sequence(data.events, self._outputs(data).double().softmax(1).numpy())

    def predict(self, X: Any, static: Any = None) -> Any:
        """Return classes (N,), or with per_step a list of (L,)."""
        probabilities = self.predict_proba(X, static)
        if self.per_step:
            return [self.classes_[part.argmax(1)] for part in probabilities]
        return self.classes_[probabilities.argmax(1)]

    def score(self, X: Any, y: Any, static: Any = None) -> float:
        """Return the accuracy; with per_step, over the steps that have a class."""
        X = _reusable(X)
        data, predicted = self._known_data(X, static), self.predict(X, static)
        flat, missing = self._classes_of(data.events, y)
        return float(
            accuracy_score(flat[~missing], (np.concatenate(predicted) if self.per_step else predicted)[~missing])
        )

    def _classes_of(self, events: EventBatch, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Classes as given, and where there are none."""
        self._require_y(y)
        return as_classes(y, len(events), self._lengths(events))

    def _weights(self, labels: Tensor) -> Tensor | None:
        if self.class_weight is None:
            return None
        known = self.classes_[labels[labels != IGNORED_CLASS].numpy()]
        weights = np.asarray(compute_class_weight(self.class_weight, classes=self.classes_, y=known), np.float64)
        if not ((weights >= 0) & (weights <= np.finfo(np.float32).max)).all():
            raise ValueError(f"class_weight should be finite and from 0 on, got {weights.tolist()}")
        if not weights.astype(np.float32).any():
            raise ValueError(f"class_weight should be above 0 for a class, got {weights.tolist()}: no sequence counts")
        return torch.from_numpy(weights.astype(np.float32))


class PhasedLSTMRegressor(RegressorMixin, _PhasedEstimator):  # type: ignore[misc]
    """Predicts numbers for sequences, or for their steps.

    X is as for `PhasedLSTMClassifier`. y is (N,) or (N, K), NaN where missing; with `per_step` an array (L,) or (L, K)
    for each sequence, NaN at steps without a target. A step at which every channel is missing asks for a prediction at
    a time that has no measurement: `data.with_queries` adds such steps.

    Targets are standardised while training, and the loss is the mean squared error. Parameters are those of
    `PhasedLSTMClassifier` without class_weight; `monitor` is "loss", "mae", "rmse" or "r2".

    Attributes:
        network_: the trained `SequenceNetwork`; `network_.save(folder)` keeps it.
        n_features_in_: number of channels.
        n_epochs_: epochs done.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, static: Any = None) -> Self:
        """Train anew.

        Args:
            X: N sequences.
            y: their targets.
            static: (N, G) features that do not change over a sequence, NaN where missing.

        Raises:
            TypeError, ValueError: X, y or static of another form or number, infinite targets, or a parameter out of
                range.
        """
        data, form = self._data(X, static)
        labels = self._targets(data.events, y)
        self._single = labels.dim() == 1
        labels = labels.reshape(len(labels), -1)
        unknown = labels.isnan().all(dim=0).nonzero().flatten()
        if len(unknown):
            raise ValueError(f"y has no number at all in column {int(unknown[0])}: all are missing")
        return self._fit(data, form, labels, labels.shape[1], "regression")

    def partial_fit(self, X: Any, y: Any, static: Any = None) -> Self:
        """Train one epoch on these sequences, at a constant learning rate; the first call fixes scale and gates.

        Raises:
            ValueError: as `fit`.
        """
        fresh = not hasattr(self, "network_")
        data, form = self._data(X, static) if fresh else (self._known_data(X, static), self._fitted_form)
        labels = self._targets(data.events, y)
        single, labels = labels.dim() == 1, labels.reshape(len(labels), -1)
        if fresh:
            self._single = single
        elif labels.shape[1] != self.network_.config.outputs:
            raise ValueError(f"y has {labels.shape[1]} targets, the first call had {self.network_.config.outputs}")
        return self._partial_fit(data, form, labels, labels.shape[1], "regression")

    def predict(self, X: Any, static: Any = None) -> Any:
        """Return (N,) or (N, K) as y was, or with per_step a list of (L,) or (L, K)."""
        data = self._known_data(X, static)
        assert self.network_.target_scale is not None
        outputs = self.network_.target_scale.inverse(self._outputs(data).double()).numpy()
        return self._by_sequence(data.events, outputs[:, 0] if self._single else outputs)

    def score(self, X: Any, y: Any, static: Any = None) -> float:
        """Return R2 over the sequences, or with per_step the steps, that have all targets."""
        X = _reusable(X)
        data, predicted = self._known_data(X, static), self.predict(X, static)
        targets = self._targets(data.events, y).numpy()
        known = ~np.isnan(targets.reshape(len(targets), -1)).any(axis=1)
        flat = np.concatenate(predicted) if self.per_step else predicted
        return float(r2_score(targets[known], flat[known]))

    def _targets(self, events: EventBatch, y: Any) -> Tensor:
        self._require_y(y)
        return as_numbers(y, len(events), self._lengths(events))
