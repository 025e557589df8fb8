"""Estimators, as scikit-learn and its users call them."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import _safe_indexing, estimator_checks

from phased_lstm import PhasedLSTMClassifier, PhasedLSTMRegressor
from phased_lstm.data import EventBatch, EventDataset, with_queries

SMALL: dict[str, Any] = {
    "hidden_size": 8, "epochs": 25, "batch_size": 8, "ratio_on": 0.5, "lr": 2e-2, "early_stopping": False,
    "random_state": 0,
}  # fmt: skip
ESTIMATORS = [PhasedLSTMClassifier, PhasedLSTMRegressor]


def waves(count: int = 40, seed: int = 0) -> tuple[EventBatch, np.ndarray, np.ndarray]:
    """Sines that begin upwards or downwards, at odd moments; their classes; and a number that goes with the class."""
    generator = np.random.default_rng(seed)
    classes = np.array(["down", "up"])[np.arange(count) % 2]
    pairs = []
    for name in classes:
        length = generator.integers(8, 16)
        times = np.sort(generator.uniform(0.0, 6.0, length))
        values = np.sin(times) * (1 if name == "up" else -1) + generator.normal(0, 0.1, length)
        both = np.stack([values, generator.normal(size=length)], axis=1)
        both[generator.random(both.shape) < 0.2] = np.nan
        pairs.append((torch.from_numpy(both), torch.from_numpy(times)))
    return EventBatch.from_sequences(pairs), classes, np.where(classes == "up", 5.0, -3.0)


def test_a_classifier_learns() -> None:
    X, y, _ = waves()
    classifier = PhasedLSTMClassifier(**SMALL).fit(X[:30], y[:30])
    assert classifier.classes_.tolist() == ["down", "up"]
    assert classifier.score(X[30:], y[30:]) == 1.0
    probabilities = classifier.predict_proba(X[30:])
    assert probabilities.shape == (10, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(X[30:])).all()
    assert classifier.n_features_in_ == 2


def test_a_regressor_learns_in_the_unit_of_the_targets() -> None:
    X, _, y = waves()
    regressor = PhasedLSTMRegressor(**SMALL | {"epochs": 60, "hidden_size": 16}).fit(X[:30], 100.0 * y[:30] + 7000.0)
    assert regressor.predict(X[30:]).shape == (10,)
    assert regressor.score(X[30:], 100.0 * y[30:] + 7000.0) > 0.8
    both = PhasedLSTMRegressor(**SMALL | {"epochs": 1}).fit(X, np.stack([y, -y], axis=1))
    assert both.predict(X).shape == (40, 2)


def test_all_forms_of_input_give_the_same() -> None:
    X, y, _ = waves(16)
    static = np.linspace(0, 1, 32).reshape(16, 2)
    static[3, 0] = np.nan
    options = SMALL | {"epochs": 2}
    expected = PhasedLSTMClassifier(**options).fit(X, y, static).predict_proba(X, static)
    pairs = [(values.numpy(), times.numpy()) for values, times in X]
    samples = EventDataset(X, None, torch.from_numpy(static).float())
    for form, extra in ((pairs, {"static": static}), (samples, {}), (list(samples), {})):
        got = PhasedLSTMClassifier(**options).fit(form, y, **extra).predict_proba(form, **extra)
        np.testing.assert_array_equal(got, expected)


def test_an_array_with_gaps_is_sequences_on_a_grid() -> None:
    generator = np.random.default_rng(1)
    X = generator.normal(size=(12, 6, 2))
    X[generator.random(X.shape[:2]) < 0.3] = np.nan
    y = np.arange(12) % 3
    ragged = EventBatch.from_dense(torch.from_numpy(X).float(), torch.arange(6))
    options = SMALL | {"epochs": 2}
    dense = PhasedLSTMClassifier(**options).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(dense, PhasedLSTMClassifier(**options).fit(ragged, y).predict_proba(ragged))
    assert dense.shape == (12, 3)


def test_the_order_of_sequences_at_prediction_changes_nothing() -> None:
    X, y, _ = waves()
    classifier = PhasedLSTMClassifier(**SMALL | {"epochs": 2}).fit(X, y)
    order = np.random.default_rng(2).permutation(40)
    np.testing.assert_allclose(classifier.predict_proba(X[order]), classifier.predict_proba(X)[order], rtol=1e-5)


def test_splitters_and_searches() -> None:
    X, y, _ = waves(24)
    chosen = _safe_indexing(X, np.array([3, 1]))
    assert torch.equal(chosen[0][1], X[3][1])
    options = SMALL | {"epochs": 3}
    scores = cross_val_score(PhasedLSTMClassifier(**options), X, y, cv=3, error_score="raise")
    assert scores.shape == (3,)
    search = GridSearchCV(PhasedLSTMClassifier(**options), {"hidden_size": [4, 6]}, cv=2, error_score="raise")
    search.fit(EventDataset(X, None, torch.rand(24, 2)), y)
    assert search.best_estimator_.network_.config.static == ("0", "1")
    assert search.best_params_["hidden_size"] in (4, 6)
    pipeline = make_pipeline(FunctionTransformer(lambda events: events), PhasedLSTMClassifier(**options))
    assert pipeline.fit(X, y).predict(X).shape == (24,)
    assert cross_val_predict(pipeline, X, y, cv=2, method="predict_proba").shape == (24, 2)


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    X, y, _ = waves(16)
    options = SMALL | {"epochs": 2, "early_stopping": True, "validation_fraction": 0.25, "dropout": 0.3}
    before = torch.get_rng_state()
    first = PhasedLSTMClassifier(**options).fit(X, y).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = PhasedLSTMClassifier(**options).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), first)
    np.testing.assert_array_equal(again.fit(X, y).predict_proba(X), first)
    assert (PhasedLSTMClassifier(**options | {"random_state": 1}).fit(X, y).predict_proba(X) != first).any()


def test_early_stopping_keeps_the_best_weights() -> None:
    X, y, _ = waves(24)
    # A rate at which the network cannot hold what it has found.
    options = SMALL | {"epochs": 40, "early_stopping": True, "validation_fraction": 0.3, "patience": 2, "lr": 2.0}
    stopped = PhasedLSTMClassifier(**options | {"clip_grad_norm": 0.0}).fit(X, y)
    assert 3 <= stopped.n_epochs_ < 40
    with pytest.raises(ValueError, match="too few to set 1 apart for validation"):
        PhasedLSTMRegressor(**options).fit(X[:1], [1.0])


def test_class_weights_move_the_decision() -> None:
    X, y, _ = waves(24)
    few = np.flatnonzero((y == "down") | (np.arange(24) < 4))
    noisy = X[few], y[few]
    options = SMALL | {"epochs": 1, "lr": 1e-2}
    plain, heavy, balanced = (
        PhasedLSTMClassifier(**options, class_weight=weight).fit(*noisy).predict_proba(X)[:, 1].mean()
        for weight in (None, {"down": 1.0, "up": 50.0}, "balanced")
    )
    assert plain < balanced < heavy


def test_partial_fit_goes_on() -> None:
    X, y, number = waves()
    classifier = PhasedLSTMClassifier(**SMALL)
    with pytest.raises(ValueError, match="classes must be passed"):
        classifier.partial_fit(X, y)
    classifier.partial_fit(X[:10], y[:10], classes=["down", "up"])
    first = classifier.network_.head.weight.detach().clone()
    for _ in range(30):
        classifier.partial_fit(X[:30], y[:30])
    assert classifier.n_epochs_ == 31
    assert (classifier.network_.head.weight != first).any()
    assert classifier.score(X[30:], y[30:]) >= 0.9
    with pytest.raises(ValueError, match="'sideways', not among the classes"):
        classifier.partial_fit(X[:1], ["sideways"])
    assert PhasedLSTMRegressor(**SMALL).partial_fit(X, number).n_epochs_ == 1


def test_a_class_for_each_step() -> None:
    X, _, _ = waves(20)
    # Whether the time of a step is beyond 3; some steps have no class.
    y = [np.where(times.numpy() > 3.0, "late", "early").astype(object) for _, times in X]
    for part in y:
        part[::5] = None
    classifier = PhasedLSTMClassifier(**SMALL, per_step=True).fit(X, y)
    predicted = classifier.predict(X)
    assert [len(part) for part in predicted] == X.lengths.tolist()
    assert classifier.predict_proba(X)[0].shape == (len(predicted[0]), 2)
    assert classifier.score(X, y) > 0.85
    with pytest.raises(ValueError, match="y of sequence 1 should have"):
        classifier.fit(X, [y[0], y[1][:2], *y[2:]])


def test_regression_at_times_without_a_measurement() -> None:
    generator = np.random.default_rng(3)
    pairs, queries, targets = [], [], []
    for _ in range(40):
        level = generator.uniform(-1, 1)
        times = np.sort(generator.uniform(0.0, 6.0, 10))
        pairs.append((torch.from_numpy(level + 0 * times).unsqueeze(1), torch.from_numpy(times)))
        queries.append(generator.uniform(1.0, 6.0, 3))
        targets.append(np.full(3, level))
    X, y, asked = with_queries(EventBatch.from_sequences(pairs), queries, targets)
    assert int(asked.sum()) == 120
    assert X.values[asked].isnan().all()
    regressor = PhasedLSTMRegressor(**SMALL | {"epochs": 60, "hidden_size": 16}, per_step=True)
    regressor.fit(X[:30], y[:30])
    assert regressor.score(X[30:], y[30:]) > 0.8
    scores = cross_val_score(clone(regressor).set_params(epochs=2), X, y, cv=KFold(2), error_score="raise")
    assert np.isfinite(scores).all()


def test_queries_stand_in_the_order_of_time() -> None:
    events = EventBatch.from_sequences([(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 10]))])
    joined, labels, asked = with_queries(events, [[10, 5]], [[7.0, 6.0]])
    assert joined.times.tolist() == [0, 5, 10, 10]
    assert joined.values[:, 0].nan_to_num(-1.0).tolist() == [1.0, -1.0, 2.0, -1.0]
    assert labels[0].nan_to_num(-1.0).tolist() == [-1.0, 6.0, -1.0, 7.0]
    assert asked.tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="a target for each"):
        with_queries(events, [[1, 2]], [[1.0]])
    with pytest.raises(ValueError, match="of each of the 1 sequences"):
        with_queries(events, [])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (np.zeros((4, 3)), [0, 1, 0, 1], TypeError, "array (N, T, F)|sequence 0 of X should be"),
        ("abc", [0], TypeError, "X should be an EventBatch"),
        ([], [], ValueError, "0 samples"),
        ([(np.zeros((2, 1)), np.zeros(3))], [0], ValueError, "sequence 0 should have values"),
        ([(["x"], [0.0])], [0], ValueError, "sequence 0 of X"),
        (np.full((4, 3, 1), np.inf), [0, 1, 0, 1], ValueError, "infinite values, the first in sequence 0"),
        (np.zeros((4, 3, 1)), [0, 1, 0], ValueError, "y should have 4 entries"),
        (np.zeros((4, 3, 1)), None, ValueError, "requires y to be passed"),
    ],
)
def test_bad_input_is_named(estimator: Any, X: Any, y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        estimator(**SMALL).fit(X, y)
    assert any(part in str(raised.value) for part in message.split("|")), raised.value


def test_what_does_not_fit_the_network_is_refused() -> None:
    X, y, _ = waves(12)
    classifier = PhasedLSTMClassifier(**SMALL | {"epochs": 1})
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        classifier.fit(X, ["a"] * 12)
    classifier.fit(X, y)
    with pytest.raises(ValueError, match="X has 1 features, but PhasedLSTMClassifier is expecting 2"):
        classifier.predict(EventBatch(X.values[:, :1], X.times, X.offsets))
    with pytest.raises(ValueError, match="fitted with 0 static features, got 1"):
        classifier.predict(X, np.zeros((12, 1)))
    with pytest.raises(ValueError, match="static should be"):
        classifier.fit(X, y, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="hidden_size must be greater"):
        clone(classifier).set_params(hidden_size=0).fit(X, y)
    for name, value in (("epochs", 0), ("epochs", 2.5), ("batch_size", 0), ("patience", -1)):
        with pytest.raises(ValueError, match=f"{name} should be a whole number from . on, got {value}"):
            clone(classifier).set_params(**{name: value}).fit(X, y)
    with pytest.raises(ValueError, match=r"lr should be above 0, got -1\.0"):
        clone(classifier).set_params(lr=-1.0).fit(X, y)
    with pytest.raises(ValueError, match="monitor 'r2' is no figure of a classification"):
        clone(classifier).set_params(monitor="r2", early_stopping=True).fit(X, y)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_pickled_and_cloned(estimator: Any) -> None:
    X, classes, number = waves(16)
    y = classes if estimator is PhasedLSTMClassifier else number
    fitted = estimator(**SMALL | {"epochs": 2}).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    fresh = clone(fitted)
    assert not hasattr(fresh, "network_")
    assert fresh.get_params() == fitted.get_params()


# Those of scikit-learn's checks that make no data, or only what fit refuses. The others feed arrays (N, F) of one
# number a feature, which are no sequences; the tests above do with sequences what they do.
CHECKS = [
    "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types", "check_estimator_repr",
    "check_no_attributes_set_in_init", "check_parameters_default_constructible", "check_get_params_invariance",
    "check_set_params", "check_do_not_raise_errors_in_init_or_set_param", "check_mixin_order",
    "check_estimators_unfitted",
]  # fmt: skip


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", CHECKS)
def test_scikit_learns_own_checks(estimator: Any, name: str) -> None:
    check = getattr(estimator_checks, name, None) or getattr(estimator_checks, name + "s")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(estimator.__name__, estimator())
