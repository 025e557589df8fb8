"""What callers give as y, as numbers or as classes."""

from __future__ import annotations

import decimal
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import DataConversionWarning

from phased_lstm.training.targets import as_classes, as_numbers, class_numbers

NAN = np.nan


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([1, 2.5, None], [1.0, 2.5, NAN]),
        (np.ma.masked_values([1.0, 2.5, 1e20], 1e20), [1.0, 2.5, NAN]),
        ([1.0, 2.5, np.ma.masked], [1.0, 2.5, NAN]),
        (["1", "2.5", "nan"], [1.0, 2.5, NAN]),
        (np.array([decimal.Decimal(1), 2.5, NAN], object), [1.0, 2.5, NAN]),
        (torch.tensor([1.0, 2.5, NAN], dtype=torch.bfloat16), [1.0, 2.5, NAN]),
        (torch.tensor([1.0, 2.5, NAN], requires_grad=True), [1.0, 2.5, NAN]),
        (np.array([1.0, 2.5, NAN], ">f8")[::-1][::-1], [1.0, 2.5, NAN]),
        (np.array([True, False, True]), [1.0, 0.0, 1.0]),
        (np.array([1.7e9, 1.7e9 + 0.25, 0.0]), [1.7e9, 1.7e9 + 0.25, 0.0]),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, None]], [[1.0, 2.0], [3.0, 4.0], [5.0, NAN]]),
    ],
)
def test_numbers(y: Any, expected: Any) -> None:
    numbers = as_numbers(y, 3)
    assert numbers.dtype == torch.float64
    np.testing.assert_array_equal(numbers.numpy(), expected)


def test_numbers_are_a_copy() -> None:
    y = np.array([1.0, 2.0])
    numbers = as_numbers(y, 2)
    y[:] = 9.0
    assert numbers.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0, np.inf, 2.0], "infinite entries, the first at sequence 1"),
        (["a", "b", "c"], "y: could not convert string to float: .*a"),
        (np.array([1, 2, 3]) + 1j, "y: complex numbers"),
        (np.array(["2020", "2021", "NaT"], "datetime64[Y]"), "y: there should be numbers, got dates"),
        ([1.0, 2.0], r"y should have 3 entries, one for each sequence, got shape \(2,\)"),
        (5.0, r"y should have 3 entries"),
        (np.zeros((3, 2, 2)), r"one number for each entry, or K, .* got shape \(3, 2, 2\)"),
        ([[1.0], [2.0, 3.0], [4.0]], "y: entries are of unequal length"),
        (2**60 + np.arange(3), "differ in digits"),
    ],
)
def test_no_numbers(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_numbers(y, 3)


def test_numbers_of_steps() -> None:
    parts = [np.ma.masked_values([1.0, 9.0], 9.0), [None, 2.0, 3.0]]
    np.testing.assert_array_equal(as_numbers(parts, 2, [2, 3]).numpy(), [1.0, NAN, NAN, 2.0, 3.0])
    for y, message in (
        ([[1.0], [1.0, 2.0, 3.0]], "y of sequence 0 should have 2 entries, one a step, got 1"),
        ([[1.0, 2.0]], "an entry for each of the 2 sequences, got 1"),
        ([[1.0, 2.0], [[1.0], [2.0], [3.0]]], "y of sequence 1 should have one number for each entry"),
        ([1.0, 2.0], "y of sequence 0 should have 2 entries, one a step, got 0"),
        (3, "an array for each of the 2 sequences, got int"),
        ([[1.0, "x"], [1.0, 2.0, 3.0]], "y of sequence 0: there should be numbers|y of sequence 0: could not convert"),
    ):
        with pytest.raises(ValueError, match=message):
            as_numbers(y, 2, [2, 3])


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        (np.array(["b", "a", "b"], object), ["b", "a", "b"]),
        (np.array([1, 0, 1], object), [1, 0, 1]),
        ([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]),
        (np.array([True, False, True]), [True, False, True]),
        (np.array([1, 0, 1], ">i2"), [1, 0, 1]),
        (torch.tensor([1, 0, 1]), [1, 0, 1]),
        ([torch.tensor(1), np.array(0), np.int8(1)], [1, 0, 1]),
        (np.ma.array([1, 0, 1]), [1, 0, 1]),
    ],
)
def test_classes(y: Any, expected: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat, missing = as_classes(y, 3)
    assert flat.tolist() == expected
    assert flat.dtype != object
    assert not missing.any()


def test_a_column_of_classes_is_flattened_with_scikit_learns_warning() -> None:
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        flat, _ = as_classes([["a"], ["b"], ["a"]], 3)
    assert flat.tolist() == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[0, 1], [1, 0], [0, 1]], r"y should be a 1d array, got an array of shape \(3, 2\) instead"),
        (["a", None, "b"], r"y of sequence 1 is missing: leave"),
        (["a", NAN, "b"], r"y of sequence 1 is missing: leave"),
        ([np.str_("a"), NAN, np.str_("b")], r"y of sequence 1 is missing: leave"),
        ([1, np.ma.masked, 0], r"y of sequence 1 is missing: leave"),
        ([0.0, 1.0, NAN], r"y of sequence 2 is missing"),
        (np.ma.masked_values([0, 9, 1], 9), r"y of sequence 1 is missing"),
        ([0.0, np.inf, 1.0], "infinite entries, which are no classes"),
        (["a", 1, "b"], "text and numbers for classes, such as 'a' and 1"),
        ([0.1, 0.2, 0.3], "Unknown label type: continuous"),
        ([0, 1], r"y should have 3 entries, one for each sequence, got shape \(2,\)"),
        ("abc", r"y should have 3 entries, one for each sequence, got shape \(\)"),
        ([[1], [2, 3], [4]], "one class for each entry, got entries of several|unequal length"),
        (np.array([0, 1, 0]) + 1j, "y: complex numbers"),
    ],
)
def test_no_classes(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_classes(y, 3)


def test_classes_of_steps() -> None:
    parts = [["a", None], np.array(["b", NAN, "a"], object)]
    flat, missing = as_classes(parts, 2, [2, 3])
    assert missing.tolist() == [False, True, False, True, False]
    assert flat[~missing].tolist() == ["a", "b", "a"]
    masked = [np.ma.masked_values([0, 9], 9), np.array([[1.0], [NAN], [0.0]])]
    flat, missing = as_classes(masked, 2, [2, 3])
    assert missing.tolist() == [False, True, False, True, False]
    assert flat[~missing].tolist() == [0.0, 1.0, 0.0]
    for y, message in (
        ([[0.1, 0.2], [0.3, 0.4, 0.5]], "Unknown label type"),
        ([["a", 1], ["a", "b", "a"]], "text and numbers"),
        ([np.zeros((2, 2)), [1, 0, 1]], r"y of sequence 0 should be a 1d array, got an array of shape \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            as_classes(y, 2, [2, 3])


def test_text_is_not_compared_with_numbers() -> None:
    """numpy would: "10" and 10 are one to it, and in another order than "9" and 9."""
    missing = np.zeros(2, bool)
    assert class_numbers(np.array([10, 9]), missing, np.array([9, 10]), -100).tolist() == [1, 0]
    with pytest.raises(ValueError, match="y has the class '10', not among the classes"):
        class_numbers(np.array(["10", "9"]), missing, np.array([9, 10]), -100)
    assert class_numbers(np.array([9, 9]), np.array([False, True]), np.array([9, 10]), -100).tolist() == [0, -100]
