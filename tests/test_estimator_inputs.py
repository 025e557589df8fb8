"""What estimators make of arrays, dates and targets of every kind: one result, or an error that names the fault."""

from __future__ import annotations

import datetime
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GridSearchCV

from phased_lstm import PhasedLSTMClassifier, PhasedLSTMRegressor
from phased_lstm.data import EventBatch
from phased_lstm.models import SequenceNetwork

SMALL: dict[str, Any] = {
    "hidden_size": 4, "epochs": 2, "batch_size": 8, "ratio_on": 0.5, "early_stopping": False, "random_state": 0,
}  # fmt: skip
Y = np.arange(12) % 2


def pairs(count: int = 12, steps: int = 7) -> list[tuple[np.ndarray, np.ndarray]]:
    """Binary fractions, so that offsets and other types round nothing."""
    generator = np.random.default_rng(4)
    return [
        (generator.integers(-64, 64, (steps, 2)) / 32.0, np.sort(generator.integers(0, 5000, steps)))
        for _ in range(count)
    ]


def probabilities(X: Any, y: Any = Y, **options: Any) -> np.ndarray:
    return PhasedLSTMClassifier(**SMALL | options).fit(X, y).predict_proba(X)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_steps_in_any_order_of_time_give_the_same() -> None:
    X = pairs()
    expected = probabilities(X)
    back = [(values[::-1], times[::-1]) for values, times in X]
    order = np.random.default_rng(0).permutation(7)
    mixed = [(values[order], times[order]) for values, times in X]
    batch = EventBatch.from_sequences([(torch.tensor(v).float(), torch.tensor(t)) for v, t in mixed])
    for given in (back, mixed, batch):
        np.testing.assert_array_equal(probabilities(given), expected)
    steps = [np.arange(7) % 2] * 12
    with pytest.raises(ValueError, match="sequence 0 of X goes back in time: sort its steps, and the entries of y"):
        PhasedLSTMClassifier(**SMALL, per_step=True).fit(back, steps)


def test_steps_of_one_time_keep_their_order() -> None:
    X = [(values, np.array([5, 5, 1, 1, 9, 9, 9])) for values, _ in pairs()]
    stable = [(values[[2, 3, 0, 1, 4, 5, 6]], np.sort(times)) for values, times in X]
    np.testing.assert_array_equal(probabilities(X), probabilities(stable))


def test_dates_are_one_unit_in_training_and_prediction() -> None:
    X = [(values, times.astype("datetime64[s]")) for values, times in pairs()]
    classifier = PhasedLSTMClassifier(**SMALL).fit(X, Y)
    expected = classifier.predict_proba(X)
    for unit in ("ms", "us", "ns"):
        again = [(values, times.astype(f"datetime64[{unit}]")) for values, times in X]
        np.testing.assert_array_equal(classifier.predict_proba(again), expected)
    counts = [(values, times.astype("datetime64[ns]").astype(np.int64)) for values, times in X]
    with pytest.warns(UserWarning, match="times of X are numbers, and were dates in training: .* counts of ns"):
        np.testing.assert_array_equal(classifier.predict_proba(counts), expected)


def test_the_unit_of_training_holds_where_dates_pass_2116() -> None:
    X = [(values, (times * 10**6).astype("datetime64[s]").astype("datetime64[ns]")) for values, times in pairs()]
    assert any(times.max() > np.datetime64("2120") for _, times in X)
    early = next(n for n, (_, times) in enumerate(X) if times.max() < np.datetime64("2110"))
    with pytest.warns(UserWarning, match="all become microseconds"):
        classifier = PhasedLSTMClassifier(**SMALL).fit(X, Y)
    expected = classifier.predict_proba(X)[[early]]
    # Alone it would be in nanoseconds.
    np.testing.assert_array_equal(classifier.predict_proba([X[early]]), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba([X[early]]), expected)


@pytest.mark.parametrize("offset", [1e6, 1.7e9])
def test_a_regression_does_not_depend_on_where_zero_is(offset: float) -> None:
    X, y = pairs(), np.random.default_rng(1).integers(-99, 99, 12) / 64.0
    options = SMALL | {"epochs": 8, "early_stopping": True, "validation_fraction": 0.25}
    plain = PhasedLSTMRegressor(**options).fit(X, y)
    moved = PhasedLSTMRegressor(**options).fit(X, y + offset)
    np.testing.assert_allclose(moved.predict(X) - offset, plain.predict(X), rtol=0, atol=1e-5)
    assert moved.score(X, y + offset) == pytest.approx(plain.score(X, y), abs=1e-5)


def test_values_and_static_features_do_not_depend_on_where_zero_is() -> None:
    X, offset = pairs(), 1.7e9
    static = np.arange(24.0).reshape(12, 2)
    plain = PhasedLSTMClassifier(**SMALL).fit(X, Y, static=static)
    far = [(values + offset, times) for values, times in X]
    moved = PhasedLSTMClassifier(**SMALL).fit(far, Y, static=static + offset)
    np.testing.assert_allclose(
        moved.predict_proba(far, static=static + offset), plain.predict_proba(X, static=static), rtol=1e-4
    )
    # One sequence, in which nothing varies, is read with the scale of training.
    one, still = [(np.full((7, 2), 0.5), X[0][1])], [(np.full((7, 2), 0.5) + offset, X[0][1])]
    np.testing.assert_allclose(
        moved.predict_proba(still, static=static[:1] + offset), plain.predict_proba(one, static=static[:1]), rtol=1e-4
    )
    with pytest.raises(ValueError, match=r"sequence 0 of X has values beyond 3\.4e\+38"):
        plain.predict_proba([(X[0][0] * 1e300, X[0][1])], static=static[:1])


@pytest.mark.parametrize("per_step", [False, True])
def test_double_precision_as_torchs_default(double: None, per_step: bool, tmp_path: Any) -> None:
    X, static = pairs(), np.arange(24.0).reshape(12, 2)
    y = [np.arange(7) % 2] * 12 if per_step else Y
    options = SMALL | {"class_weight": "balanced", "per_step": per_step, "dropout": 0.1, "num_layers": 2}
    classifier = PhasedLSTMClassifier(**options).fit(X, y, static=static)
    assert {parameter.dtype for parameter in classifier.network_.parameters()} == {torch.float64}
    expected = classifier.predict_proba(X, static=static)
    classifier.network_.save(tmp_path)
    torch.set_default_dtype(torch.float32)
    classifier.network_ = SequenceNetwork.load(tmp_path)
    torch.set_default_dtype(torch.float64)
    np.testing.assert_array_equal(classifier.predict_proba(X, static=static), expected)
    targets = [np.arange(7.0)] * 12 if per_step else Y + 1.7e9
    assert np.isfinite(PhasedLSTMRegressor(**SMALL, per_step=per_step).fit(X, targets).score(X, targets))


def test_masked_arrays_are_not_what_lies_under_the_mask() -> None:
    X, under = pairs(), 1e20
    static = np.ma.masked_values(np.where(Y == 0, under, Y)[:, None], under)
    classifier = PhasedLSTMClassifier(**SMALL).fit(X, Y, static=static)
    assert classifier.network_.static_scale.mean.item() == 1.0
    y = np.ma.masked_values(np.where(Y == 0, under, 3.0 + np.arange(12)), under)
    regressor = PhasedLSTMRegressor(**SMALL).fit(X, y)
    assert regressor.network_.target_scale.mean.item() == 9.0
    # The score is that of the sequences that have a target.
    rows = np.flatnonzero(Y)
    assert regressor.score(X, y) == regressor.score([X[row] for row in rows], 3.0 + rows)


def test_parameters_from_numpy_work_in_a_search() -> None:
    grid = {
        "hidden_size": np.arange(2, 4), "num_layers": np.arange(1, 2), "head_size": np.arange(2, 3),
        "ratio_on": np.array([0.25], np.float32), "leak": np.array([0.001], np.float32), "peephole": np.array([True]),
        "cell": np.array(["PhasedLSTM"]), "epochs": np.array([1]), "batch_size": np.array([4], np.int8),
        "lr": np.array([0.01], np.float32), "validation_fraction": np.array([0.25], np.float32),
        "early_stopping": np.array([True]), "per_step": np.array([False]),
    }  # fmt: skip
    search = GridSearchCV(PhasedLSTMClassifier(random_state=np.int64(0)), grid, cv=2, error_score="raise")
    config = search.fit(pairs(), Y).best_estimator_.network_.config
    assert type(config.hidden_size) is int
    assert "np." not in repr(config)


def test_y_of_other_forms() -> None:
    X = pairs()
    expected = probabilities(X)
    for y in (Y.astype(float), Y.astype(">i8"), torch.tensor(Y), Y.astype(object), Y.tolist(), Y > 0):
        np.testing.assert_array_equal(probabilities(X, y), expected)
    with pytest.warns(DataConversionWarning):
        np.testing.assert_array_equal(probabilities(X, Y[:, None]), expected)
    classifier = PhasedLSTMClassifier(**SMALL)
    with pytest.raises(ValueError, match=r"y should be a 1d array, got an array of shape \(12, 2\) instead"):
        classifier.fit(X, np.stack([Y, 1 - Y], axis=1))
    with pytest.raises(ValueError, match=r"y of sequence 3 is missing"):
        classifier.fit(X, [None if n == 3 else str(n % 2) for n in range(12)])
    with pytest.raises(ValueError, match="y has no number at all in column 1"):
        PhasedLSTMRegressor(**SMALL).fit(X, np.stack([Y, np.full(12, np.nan)], axis=1))
    regressor = PhasedLSTMRegressor(**SMALL).partial_fit(X, Y)
    with pytest.raises(ValueError, match="y has 2 targets, the first call had 1"):
        regressor.partial_fit(X, np.stack([Y, Y], axis=1))
    assert regressor.predict(X).shape == (12,)
    assert PhasedLSTMRegressor(**SMALL).fit(X, Y[:, None]).predict(X).shape == (12, 1)


def test_scores_compare_classes_of_one_kind() -> None:
    X = pairs()
    classifier = PhasedLSTMClassifier(**SMALL, per_step=True).fit(X, [np.arange(7) % 2] * 12)
    with pytest.raises((TypeError, ValueError), match=r"mix|Mix|different types"):
        classifier.score(X, [[str(number % 2) for number in range(7)]] * 12)
    plain = PhasedLSTMClassifier(**SMALL).fit(X, Y)
    assert plain.score(iter(X), Y) == plain.score(X, Y)


def test_what_is_kept_is_not_changed_from_outside() -> None:
    X, static, y = pairs(), np.ones((12, 1), np.float32), Y.astype(np.float64)
    regressor = PhasedLSTMRegressor(**SMALL).partial_fit(X, y, static=static)
    classifier = PhasedLSTMClassifier(**SMALL).fit(X, Y)
    kept = regressor.predict(X, static=static), classifier.predict_proba(X), classifier.classes_.copy()
    again = pairs()
    for values, times in X:
        values[:], times[:] = 0.0, np.arange(7)
    y[:] = 5.0
    np.testing.assert_array_equal(regressor.predict(again, static=static), kept[0])
    np.testing.assert_array_equal(classifier.predict_proba(again), kept[1])
    np.testing.assert_array_equal(classifier.classes_, kept[2])
    assert static.tolist() == [[1.0]] * 12


@pytest.mark.parametrize("weights", [{0: np.nan, 1: 1.0}, {0: -1.0, 1: 1.0}, {0: 1e39, 1: 1.0}])
def test_class_weights_are_weights(weights: Any) -> None:
    with pytest.raises(ValueError, match="class_weight should be finite and from 0 on"):
        PhasedLSTMClassifier(**SMALL, class_weight=weights).fit(pairs(), Y)


@pytest.mark.parametrize(
    ("static", "message"),
    [
        (np.full((12, 1), np.inf), "static has infinite features, the first of sequence 0"),
        ([["a"]] * 12, "static: there should be numbers, got text, such as 'a'"),
        (np.zeros(12), r"static should be \(12, G\)"),
        ([[datetime.date(2020, 1, 1)]] * 12, "static: there should be numbers"),
    ],
)
def test_static_features_are_numbers(static: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        PhasedLSTMClassifier(**SMALL).fit(pairs(), Y, static=static)


def test_other_orders_of_axes_and_pairs_are_noticed() -> None:
    generator = np.random.default_rng(0)
    series = generator.normal(size=(12, 20, 2))
    classifier = PhasedLSTMClassifier(**SMALL).fit(series, Y)
    with pytest.raises(ValueError, match=r"X has 20 features, .*\(N, T, F\), and \(12, 2, 20\) may be \(N, F, T\)"):
        classifier.predict(series.transpose(0, 2, 1))
    with pytest.warns(UserWarning, match=r"read as \(N, T, F\): 2 steps of 20 channels"):
        PhasedLSTMClassifier(**SMALL).fit(series.transpose(0, 2, 1), Y)
    with pytest.warns(UserWarning, match=r"a pair is \(values, times\), in this order"):
        PhasedLSTMClassifier(**SMALL).fit([(times, values[:, 0]) for values, times in pairs()], Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PhasedLSTMClassifier(**SMALL).fit(generator.normal(size=(12, 6, 20)), Y)
        PhasedLSTMClassifier(**SMALL).fit([(values[::-1], times[::-1]) for values, times in pairs()], Y)


def test_a_channel_that_prediction_lacks_is_named() -> None:
    X = pairs()
    classifier = PhasedLSTMClassifier(**SMALL).fit(X, Y)
    with pytest.warns(UserWarning, match="1 of 2 channels have no value at all here and had some in training: 1"):
        classifier.predict([(values * [1.0, np.nan], times) for values, times in X])


def test_the_cause_of_a_loss_that_is_no_number_is_named() -> None:
    X, y = pairs(), np.random.default_rng(2).normal(size=12)
    fitted = PhasedLSTMRegressor(**SMALL).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"loss is inf at step 1: target 0 has the value .*e.30, where"):
        fitted.partial_fit(X, y * 1e30)
    wild = PhasedLSTMRegressor(**SMALL | {"epochs": 20, "lr": 1e30, "clip_grad_norm": 0.0, "warmup": 0})
    with pytest.raises(ValueError, match=r"at step [0-9]+: lower lr or clip gradients"):
        wild.fit(X, y)
    fitted = PhasedLSTMRegressor(**SMALL).fit(X, y)
    with torch.no_grad():
        fitted.network_.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="prediction for sequence 0 of X is not finite: the network's weights"):
        fitted.predict(X)


def test_a_constant_channel_and_a_constant_target_train() -> None:
    X = [(np.concatenate([values, np.full((7, 1), 1.7e9)], axis=1), times) for values, times in pairs()]
    assert np.isfinite(PhasedLSTMRegressor(**SMALL).fit(X, np.full(12, 1.7e9)).predict(X)).all()


def test_dates_are_no_numbers_of_training() -> None:
    numbers = pairs()
    dates = [(values, times.astype("M8[s]")) for values, times in numbers]
    model = PhasedLSTMClassifier(**SMALL).fit(numbers, Y)
    with pytest.raises(TypeError, match="times of X are dates or durations, and were numbers in training"):
        model.predict(dates)
    batch = EventBatch.from_lengths(
        torch.cat([torch.from_numpy(values) for values, _ in numbers]),
        torch.cat([torch.from_numpy(times) * 10**9 for _, times in numbers]),
        [len(times) for _, times in numbers],
    )
    model = PhasedLSTMClassifier(**SMALL).fit(batch, Y)
    with pytest.warns(UserWarning, match="they are taken as counts of ns"):
        found = model.predict_proba(dates)
    np.testing.assert_array_equal(found, model.predict_proba(batch))


def test_class_weights_of_zero_are_seen_before_training() -> None:
    with pytest.raises(ValueError, match="class_weight should be above 0 for a class"):
        probabilities(pairs(), class_weight={0: 0.0, 1: 1e-300})
    # One sequence is held back, and is of the class that does not count.
    y = np.arange(12) % 6 == 0
    with pytest.raises(ValueError, match="monitor 'loss' is measured where there are targets of some weight"):
        probabilities(pairs(), y, class_weight={False: 0.0, True: 1.0}, early_stopping=True)
    assert np.isfinite(probabilities(pairs(), y, class_weight={False: 0.0, True: 1.0})).all()


@pytest.mark.parametrize("name", ["early_stopping", "cosine"])
def test_text_is_no_flag(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} should be of type bool, got: 'False'"):
        probabilities(pairs(), **{name: "False"})
    np.testing.assert_array_equal(probabilities(pairs(), **{name: 0}), probabilities(pairs(), **{name: np.False_}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_forget_bias_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="forget_bias should be finite"):
        probabilities(pairs(), forget_bias=value)


def test_static_features_of_no_column_are_none() -> None:
    model = PhasedLSTMClassifier(**SMALL).fit(pairs(), Y, static=np.zeros((12, 0)))
    np.testing.assert_array_equal(model.predict_proba(pairs()), probabilities(pairs()))


def test_values_that_ask_for_gradients_are_data() -> None:
    X = [(torch.from_numpy(values).float().requires_grad_(), torch.from_numpy(times)) for values, times in pairs()]
    np.testing.assert_array_equal(probabilities(X), probabilities(pairs()))
    np.testing.assert_array_equal(probabilities(EventBatch.from_sequences(X)), probabilities(pairs()))
