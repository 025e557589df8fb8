"""What comes in from memory: arrays of every kind as batches, nothing lost and nothing taken for another."""

from __future__ import annotations

import datetime
import decimal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from phased_lstm.data import EventBatch, EventDataset, LengthBatchSampler, Sample, as_events, with_queries

NAN = np.nan
VALUES = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
TIMES = np.array([0.0, 1.5, 4.0])


def taken(values: Any = VALUES, times: Any = TIMES) -> EventBatch:
    return as_events([(values, times)])[0]


def frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: a.astype(">f4"),
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: a.astype(np.longdouble),
        lambda a: a.astype(np.float16),
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        frozen,
        lambda a: a.astype(object),
        lambda a: a.tolist(),
        lambda a: [torch.tensor(row) for row in a],
        lambda a: np.ma.array(a),
        torch.tensor,
        lambda a: torch.tensor(a, dtype=torch.bfloat16),
        lambda a: torch.tensor(a, requires_grad=True),
    ],
)
@pytest.mark.parametrize("of", ["values", "times"])
def test_numbers_of_any_layout_are_what_they_say(change: Callable[[Any], Any], of: str) -> None:
    batch = taken(change(VALUES)) if of == "values" else taken(times=change(TIMES))
    assert batch.values.dtype == torch.float32
    np.testing.assert_array_equal(batch.values.detach().numpy(), VALUES)
    np.testing.assert_array_equal(batch.times.detach().numpy(), TIMES)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.ma.masked_values([1.0, 1e20, 5.0], 1e20), [1.0, NAN, 5.0]),
        (np.ma.array([1, 2, 3], mask=[False, True, False]), [1.0, NAN, 3.0]),
        ([1.0, np.ma.masked, 5.0], [1.0, NAN, 5.0]),
        ([[1.0, 2.0], [np.ma.masked, 4.0], [5.0, 6.0]], [[1.0, 2.0], [NAN, 4.0], [5.0, 6.0]]),
        ([np.ma.masked_values([1.0, 9.0], 9.0)] * 3, [[1.0, NAN]] * 3),
        (np.array([1, None, decimal.Decimal("2.5")], object), [1.0, NAN, 2.5]),
        ([True, False, True], [1.0, 0.0, 1.0]),
        (np.array([0, 255, 3], np.uint8), [0.0, 255.0, 3.0]),
        (np.array([2**63, 1, 3], np.uint64), [2.0**63, 1.0, 3.0]),
    ],
)
def test_what_is_missing_or_masked_was_not_measured(values: Any, expected: Any) -> None:
    got = taken(values).values.numpy()
    np.testing.assert_array_equal(got, np.asarray(expected, np.float32).reshape(3, -1))


def test_masked_entries_of_an_array_of_sequences() -> None:
    batch, _ = as_events(np.ma.masked_values([[[1.0, -9.0], [-9.0, -9.0], [3.0, 4.0]]], -9.0))
    assert batch.times.tolist() == [0, 2]
    np.testing.assert_array_equal(batch.values.numpy(), [[1.0, NAN], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (VALUES + 1j, "complex numbers"),
        (torch.tensor(VALUES) + 1j, "complex numbers"),
        (torch.tensor(VALUES).to_sparse(), r"sparse tensor .* \.to_dense"),
        (torch.zeros(3, 2, device="meta"), "meta device"),
        (np.zeros(3, [("a", float), ("b", float)]), "structured array of a, b"),
        (np.array([1.0, "2", 3.0], object), "should be numbers, got '2'"),
        (["1", "2", "3"], "should be numbers, got text, such as '1'"),
        (np.array(["2020", "2021", "2022"], "datetime64[Y]"), "should be numbers, got dates"),
        (np.array([1.0, datetime.date(2020, 1, 1), 2.0], object), "should be numbers, got datetime"),
        ([[1.0, 2.0], [3.0], [4.0, 5.0]], "unequal length"),
        (np.array([2**60 + 1, 2**60 + 2, 2**60 + 3]), "differ in digits that floating numbers have no room for"),
    ],
)
def test_values_that_are_no_numbers_are_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"sequence 1 of X: .*{message}"):
        as_events([(VALUES, TIMES), (values, TIMES)])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.ma.masked_values([0.0, 1.0, 1e20], 1e20), "time at step 2 is masked"),
        (np.array(["2020-01-01", "NaT", "2020-01-03"], "datetime64[D]"), "time at step 1 is NaT"),
        ([0.0, NAN, 1.0], "time at step 1 is nan"),
        (torch.tensor([0.0, 1.0, torch.inf]), "time at step 2 is inf"),
        (np.array([0.0, None, 1.0], object), "time at step 1 is missing"),
        (TIMES + 1j, "complex numbers"),
        (np.array([1, 2, 2**63 + 1], np.uint64), "beyond what 64 bits with a sign hold"),
        ([1, 2, 10**30], "beyond what 64 bits with a sign hold"),
        (np.array([1, 2, -(2**63)]), r"within 2\*\*62 of zero"),
        (["noon", "later", "late"], "got text such as 'noon'"),
        (["1_0", "2_0", "3_0"], "got text such as '1_0'"),
        (np.longdouble(2.0**60) + np.array([0, 1, 2], np.longdouble), "closer to each other than float64 can tell"),
        (
            [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)] * 2,
            "should all have a time zone, or none",
        ),
    ],
)
def test_times_that_no_type_holds_are_refused_by_name(times: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"sequence 1 of X: .*{message}"):
        as_events([(VALUES, TIMES), (np.ones(len(times)), times)])


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("timedelta64[M]", "durations in the unit 'M' have no certain length"),
        ("timedelta64", "durations in the unit 'generic' have no certain length"),
        ("timedelta64[ps]", "has digits that the unit 'ns' has no room for: round to it first"),
    ],
)
def test_durations_without_a_length_in_nanoseconds(unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"sequence 1 of X: .*{message}"):
        as_events([(VALUES, np.array([1, 2, 3], "timedelta64[s]")), (VALUES, np.array([1, 2, 3], unit))])


def test_integer_times_of_several_types_stay_exact() -> None:
    late = np.array([2**60 + 1, 2**60 + 2, 2**60 + 3])
    batch, _ = as_events([(VALUES, np.arange(3, dtype=np.int32)), (VALUES, late)])
    assert batch.times.tolist() == [0, 1, 2, *late.tolist()]
    with pytest.raises(ValueError, match=r"sequence 1 of X has integer times beyond 2\*\*53, others have floating"):
        as_events([(VALUES, TIMES), (VALUES, late)])


DAYS = ["2020-01-01", "2020-01-02", "2020-02-01"]
NANOSECONDS = np.array(DAYS, "datetime64[ns]").astype(np.int64).tolist()


@pytest.mark.parametrize("unit", ["D", "h", "s", "ms", "us", "ns"])
def test_dates_of_every_unit_are_the_same_nanoseconds(unit: str) -> None:
    assert taken(times=np.array(DAYS, f"datetime64[{unit}]")).times.tolist() == NANOSECONDS


def test_dates_of_python_and_durations() -> None:
    days = [datetime.datetime.fromisoformat(day) for day in DAYS]
    east = datetime.timezone(datetime.timedelta(hours=5))
    zoned = [day.replace(tzinfo=datetime.UTC).astimezone(east) for day in days]
    for given in (days, zoned, [day.date() for day in days], np.array(DAYS, "datetime64[D]").astype(object)):
        assert taken(times=given).times.tolist() == NANOSECONDS
    for given in (np.array([1, 2, 90], "timedelta64[s]"), [datetime.timedelta(seconds=s) for s in (1, 2, 90)]):
        assert taken(times=given).times.tolist() == [10**9, 2 * 10**9, 90 * 10**9]
    assert taken(times=np.array([1, 2, 9], "timedelta64[10s]")).times.tolist() == [10**10, 2 * 10**10, 9 * 10**10]


def test_sequences_of_several_units_come_to_one() -> None:
    given = [(VALUES, np.array(DAYS, f"datetime64[{unit}]")) for unit in ("D", "us", "ns")]
    assert as_events(given)[0].times.tolist() == NANOSECONDS * 3
    seconds = as_events(given, time_unit="s")[0].times.tolist()
    assert seconds == [count // 10**9 for count in NANOSECONDS] * 3
    with pytest.raises(TypeError, match="sequence 1 of X has numbers for times, sequence 0 dates"):
        as_events([given[0], (VALUES, TIMES)])
    with pytest.raises(TypeError, match="sequence 1 of X has durations for times, sequence 0 dates"):
        as_events([given[0], (VALUES, np.array([1, 2, 3], "timedelta64[s]"))])
    with pytest.raises(ValueError, match="time_unit should be one of s, ms, us, ns, got 'h'"):
        as_events(given, time_unit="h")


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us"])
@pytest.mark.parametrize("day", ["0001-01-01", "1500-06-01", "2150-03-01", "2500-01-01", "9999-12-31"])
def test_dates_beyond_nanoseconds_need_a_unit(day: str, unit: str) -> None:
    given = [(VALUES, TIMES.astype("datetime64[s]")), (VALUES, np.array([day] * 3, f"datetime64[{unit}]"))]
    with pytest.raises(ValueError, match=r"sequence 1 of X: .* is beyond .* in the unit 'ns': .*time_unit='us'"):
        as_events(given)
    batch, _ = as_events(given, time_unit="us")
    assert batch.times[3].item() == np.datetime64(day, "us").astype(np.int64)


def test_dates_in_nanoseconds_after_2116_become_microseconds_for_all() -> None:
    late = np.array(["2150-03-01T00:00", "2150-03-01T01:00", "2150-03-01T02:30"], "datetime64[ns]")
    given = [(VALUES, np.array(DAYS, "datetime64[ns]")), (VALUES, late)]
    with pytest.warns(UserWarning, match="all become microseconds; give time_unit='us'"):
        batch, _ = as_events(given)
    assert batch.times.tolist() == [count // 1000 for count in NANOSECONDS] + late.astype("M8[us]").astype(int).tolist()
    with (
        pytest.warns(UserWarning, match="microseconds"),
        pytest.raises(ValueError, match=r"sequence 0 of X: .* has digits that the unit 'us' has no room for"),
    ):
        as_events([(VALUES, late + np.timedelta64(1, "ns"))])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([VALUES, VALUES], r"sequence 0 of X should be a .* pair, got ndarray of shape \(3, 2\): give each array with"),
        ([VALUES[:2], VALUES[:2]], r"got ndarray of shape \(2, 2\)"),
        ([torch.zeros(2, 5)], r"got Tensor of shape \(2, 5\)"),
        ((VALUES, TIMES), r"of one sequence give \[\(values, times\)\]"),
        ((np.zeros((4, 3, 1)), np.zeros((4, 3))), r"EventBatch.from_padded\(values, times\)"),
        ([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]], "got list of 3"),
        ([(VALUES, TIMES, 0)], "got tuple of 3"),
        ({"a": (VALUES, TIMES)}, "got dict"),
    ],
)
def test_arrays_are_not_taken_for_pairs(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_events(given)


def test_a_sequence_without_steps_goes_with_times_of_any_kind() -> None:
    late = np.array([2**60 + 1, 2**60 + 2, 2**60 + 3])
    assert as_events([(np.zeros((0, 2)), []), (VALUES, late)])[0].times.tolist() == late.tolist()
    dates = [(np.zeros((0, 2)), []), (VALUES, np.array(DAYS, "datetime64[D]")), (np.zeros((0, 2)), np.zeros(0))]
    batch, _ = as_events(dates)
    assert batch.times.tolist() == NANOSECONDS
    assert batch.lengths.tolist() == [0, 3, 0]


def test_steps_keep_their_order() -> None:
    batch = taken(times=TIMES[::-1])
    assert batch.times.tolist() == TIMES[::-1].tolist()
    assert batch.values.tolist() == VALUES.tolist()


def test_arrays_are_copied() -> None:
    values, times = VALUES.astype(np.float32), TIMES.copy()
    batches = [taken(values, times), *(as_events(values[None], keep_empty_steps=keep)[0] for keep in (True, False))]
    before = [batch.values.clone() for batch in batches]
    values[:], times[:] = 99.0, 99.0
    assert all(torch.equal(batch.values, kept) for batch, kept in zip(batches, before, strict=True))
    assert batches[0].times.tolist() == TIMES.tolist()


def test_what_varies_on_a_large_offset_is_kept() -> None:
    offset = 1.7e9
    small = np.arange(6.0).reshape(3, 2)
    for given in (small + offset, torch.tensor(small + offset), (small + offset).astype(np.int64)):
        kept = taken(given).values
        assert kept.dtype == torch.float64
        np.testing.assert_array_equal(kept.numpy() - offset, small)
    static = torch.tensor(small + offset)
    data = EventDataset(EventBatch.from_sequences([(torch.zeros(1, 1), torch.zeros(1))] * 3), None, static)
    assert torch.equal(as_events(data)[1], static)  # type: ignore[arg-type]
    # Where nothing is lost, and where nothing varies, float32 is enough.
    for given in (VALUES + 1000.0, np.full((3, 1), offset), VALUES * offset):
        assert taken(given).values.dtype == torch.float32
    assert taken(VALUES.astype(np.float32) + np.float32(offset)).values.dtype == torch.float32
    assert taken(np.array([1.0, 1e39, 2.0])).values.tolist() == [[1.0], [1e39], [2.0]]


def test_the_default_type_of_torch_is_that_of_values() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert taken().values.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_samples_of_arrays_bring_static_features() -> None:
    samples = [Sample(VALUES, TIMES, None, np.ma.masked_values([n, 9], 9)) for n in range(2)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(as_events(samples)[1], [[0.0, NAN], [1.0, NAN]])
    with pytest.raises(ValueError, match="different numbers of static features"):
        as_events([samples[0], samples[1]._replace(static=torch.zeros(3))])
    with pytest.raises(TypeError, match="static features of sequence 1: there should be numbers"):
        as_events([samples[0], samples[1]._replace(static=["a", "b"])])  # type: ignore[arg-type]


def of_times(*times: torch.Tensor) -> EventBatch:
    return EventBatch.from_sequences([(torch.ones(len(part), 1), part) for part in times])


@pytest.mark.parametrize(
    ("times", "query", "dtype"),
    [
        (torch.tensor([1, 10]), 5, torch.int64),
        (torch.tensor([1, 10], dtype=torch.int32), 5, torch.int32),
        (torch.tensor([1, 10], dtype=torch.int32), 2**40, torch.int64),
        (torch.tensor([1, 10]), 5.0, torch.int64),
        (torch.tensor([1, 10]), 9.9, torch.float64),
        (torch.tensor([-5, 5]), -0.5, torch.float64),
        (torch.tensor([1.0, 10.0]), 4.5, torch.float32),
        (torch.tensor([1.0, 10.0]), 0.1, torch.float64),
        (torch.tensor([1.7e9, 1.7e9 + 256]), 1.7e9 + 100.0, torch.float64),
        (torch.tensor([2**60 + 1, 2**60 + 9]), 2**60 + 3, torch.int64),
    ],
)
def test_queries_are_asked_at_their_times(times: torch.Tensor, query: float, dtype: torch.dtype) -> None:
    joined, _, asked = with_queries(of_times(times), [np.array([query])])
    assert joined.times.dtype == dtype
    assert joined.times[asked].item() == query
    assert joined.times[~asked].tolist() == times.tolist()


def test_queries_and_their_targets_keep_their_digits() -> None:
    _, labels, _ = with_queries(of_times(torch.tensor([1, 10])), [[2, 3, 4]], [[1.7e9 + 1.0, None, NAN]])
    np.testing.assert_array_equal(labels[0].numpy(), [NAN, 1.7e9 + 1.0, NAN, NAN, NAN])
    dates = [np.array(["1970-01-01T00:00:05"], "datetime64[s]")]
    assert with_queries(of_times(torch.tensor([1, 10])), dates, time_unit="s")[0].times.tolist() == [1, 5, 10]
    with pytest.raises(TypeError, match=r"queries of sequence 0 are dates, .* name it with time_unit='ns'"):
        with_queries(of_times(torch.tensor([1, 10])), dates)


@pytest.mark.parametrize(
    ("times", "queries", "error", "message"),
    [
        ([1, 10], [NAN], ValueError, "queries of sequence 0: the time at step 0 is nan"),
        (
            [1, 10],
            np.ma.masked_values([2.0, 3.0], 3.0),
            ValueError,
            "queries of sequence 0: the time at step 1 is mask",
        ),
        ([2**60 + 1, 2**60 + 2], [0.5], ValueError, "no type of times holds both"),
        ([1.0, 2.0], [2**53 + 1], ValueError, "no type of times holds both"),
        ([1, 10], 5, ValueError, r"should have queries \(Q,\)"),
        ([1.0, 2.0], np.array(["2020"], "datetime64[Y]"), TypeError, "queries of sequence 0 are dates"),
    ],
)
def test_queries_that_no_type_holds(times: Any, queries: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        with_queries(of_times(torch.tensor(times)), [queries])


def test_square_times_that_go_back_are_noticed() -> None:
    values, times = torch.zeros(4, 4, 1), torch.arange(16).reshape(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EventBatch.from_padded(values, times)
        EventBatch.from_padded(values, times.flip(0).flip(1))
    columns = torch.arange(16).reshape(4, 4).T.flip(1).contiguous()
    for build in (EventBatch.from_padded, EventBatch.from_dense):
        with pytest.warns(UserWarning, match=r"times \(4, 4\) are read as a row for each sequence"):
            build(values, columns)


def test_an_index_of_numpy_in_any_layout() -> None:
    batch = of_times(*torch.arange(12).split(3))
    order = np.arange(4)
    order.setflags(write=False)
    for index in (order, order[::-1], order.astype(">i8"), order.astype(np.uint8), order > 1, order[:0]):
        assert batch[index].equal(batch[torch.tensor(index.tolist())])
    assert EventBatch.from_lengths(batch.values, batch.times, np.array([9, 3], ">i4")[::-1]).lengths.tolist() == [3, 9]
    assert list(LengthBatchSampler(np.array([1, 3, 2])[::-1], 1, shuffle=False)) == [[1], [0], [2]]


ROWS = [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[7.0, 8.0, 9.0], [1.0, 2.0, 3.0]]]


def test_two_rows_of_lists_may_be_two_steps() -> None:
    with pytest.raises(TypeError, match="may be two steps or values and times"):
        as_events(ROWS)
    assert as_events(np.array(ROWS))[0].num_features == 3
    pairs = as_events([tuple(rows) for rows in ROWS])[0]
    assert (pairs.num_features, pairs.times.tolist()) == (1, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0])
    # Steps of one array would all have as many channels.
    assert as_events([[[1.0, 2.0], [0, 1]], [[3.0], [5]]])[0].lengths.tolist() == [2, 1]


def test_wide_values_that_float64_cannot_tell_apart_are_refused() -> None:
    wide = np.longdouble(2) ** 62 + np.arange(3)[:, None]
    if float(wide[0, 0]) == wide[1, 0]:
        pytest.skip("this platform's long double is float64")
    with pytest.raises(ValueError, match=r"sequence 0 of X: numbers about .* take the smallest off first"):
        taken(np.concatenate([VALUES.astype(np.longdouble), wide], axis=1))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([decimal.Decimal("1700000000.1234567891"), decimal.Decimal("1700000000.1234567892"), 1.8e9], "closer to each"),
        ([2**53 + 1, 2**53 + 3, 2.0**54], "the time 9007199254740993 is beyond what floating ones"),
        (np.array([0, 1000, 2**63 - 1], "M8[ns]"), "the time at step 2 is 2262-04-11T.*, the last that 64 bits hold"),
        (np.array([0, 2**63 - 1, 5], "m8[s]"), "the time at step 1 is .*, the last that 64 bits hold"),
    ],
)
def test_times_that_would_be_others_are_refused(times: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        taken(times=times)


def test_times_of_eight_bits_are_read() -> None:
    assert taken(times=torch.tensor([1.0, 2.0, 4.0]).to(torch.float8_e5m2)).times.tolist() == [1.0, 2.0, 4.0]


def test_queries_need_a_batch_of_floating_values() -> None:
    with pytest.raises(TypeError, match="events should be an EventBatch, as as_events makes it, got: list"):
        with_queries([(VALUES, TIMES)], [[1.0]])  # type: ignore[arg-type]
    whole = EventBatch.from_lengths(torch.ones(3, 1, dtype=torch.int64), torch.arange(3), [3])
    with pytest.raises(ValueError, match=r"values should be floating, NaN where not measured, got torch\.int64"):
        with_queries(whole, [[1.0]])


@pytest.mark.parametrize("lengths", [[1, None], np.ma.masked_equal([1, 2], 2)])
def test_lengths_that_are_missing_are_refused(lengths: Any) -> None:
    with pytest.raises(TypeError, match=r"there should be integers or bools, got \[1, None\]"):
        EventBatch.from_lengths(torch.ones(3, 1), torch.arange(3), lengths)


def test_numbers_under_a_mask_hide_no_digits() -> None:
    values = np.ma.masked_equal(np.array([[2**60 + 1, 0], [0, 0], [2**60 + 3, 0]]), 0)
    with pytest.raises(ValueError, match="integers from 1152921504606846977 to 1152921504606846979 differ in digits"):
        taken(values)
