"""Which of twenty letters a pen wrote, at 200 Hz and with most samples lost: what the real times are worth.

Each row is trained and tested on the same kind of data: all samples; a share of them dropped at random, with the
times of the others; and the same without their times. An LSTM stands beside, a Phased LSTM whose gates are open all
the time; times reach it as one more feature, the logarithm of the time since the step before.

    python examples/character_trajectories.py --results docs/results/examples/character_trajectories
"""

from __future__ import annotations

import time
from typing import Any

import torch
from reporting import options_of, parsed, report, spread
from sklearn.model_selection import train_test_split

from phased_lstm import PhasedLSTMClassifier
from phased_lstm.data import EventBatch
from phased_lstm.data.series import load_character_trajectories
from phased_lstm.plotting import Figure

RATIOS: tuple[float, ...] = (0.05, 0.1, 0.3)
RATES: tuple[float, ...] = (2e-3, 5e-3, 1e-2)
DROPPED = (0.0, 0.5, 0.9)
# k = 1 at all times, which leaves the equations of torch.nn.LSTM.
LSTM: dict[str, Any] = {"oscillation": "square", "ratio_on": 1.0}


def dropped(events: EventBatch, share: float, seed: int) -> EventBatch:
    """Leave out each sample with this probability; the first of a series stays, so that none is empty."""
    kept = torch.rand(events.num_events, generator=torch.Generator().manual_seed(seed)) >= share
    kept[events.offsets[:-1]] = True
    return events.keep(kept)


def without_times(events: EventBatch) -> EventBatch:
    """Put the number of the sample in place of its time."""
    begins = events.offsets[:-1].repeat_interleave(events.lengths)
    return EventBatch(events.values, torch.arange(events.num_events) - begins, events.offsets)


def main() -> None:
    parser = options_of(__doc__, seeds=3)
    parser.add_argument("--no-checksums", action="store_true", help="read another file of the same name and format")
    options = parsed(parser)
    letters = load_character_trajectories(options.data_dir, verify_checksums=not options.no_checksums)
    events, labels = letters.data.events, letters.data.labels
    assert labels is not None
    seeds, ratios, rates = options.seeds, RATIOS, RATES
    settings: dict[str, Any] = {"hidden_size": 64, "epochs": 40, "patience": 0}
    if options.quick:
        seeds, ratios, rates, settings = 1, (0.3,), (5e-3,), {"hidden_size": 8, "epochs": 1}
    rows = torch.arange(len(labels)).tolist()
    # This half of the published set has no published split: three tenths, the same for all rows, are for test.
    train, test = train_test_split(rows, test_size=0.3, stratify=labels, random_state=0)
    part, valid = train_test_split(train, test_size=0.2, stratify=labels[train], random_state=0)
    print(f"train {events[train]}\ntest {events[test]}")

    tuned: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, Any]] = {}
    grids = {"Phased LSTM": [{"ratio_on": ratio} for ratio in ratios], "LSTM": [LSTM | {"lr": rate} for rate in rates]}
    for kind, choices in grids.items():
        for choice in choices:
            model = PhasedLSTMClassifier(**settings, **choice, random_state=0).fit(events[part], labels[part])
            tuned.append({"kind": kind, "settings": choice, "accuracy": model.score(events[valid], labels[valid])})
            print(f"validation, all samples: {kind} {choice}: {100 * tuned[-1]['accuracy']:.1f} %")
        of_kind = [row for row in tuned if row["kind"] == kind]
        chosen[kind] = max(of_kind, key=lambda row: float(row["accuracy"]))["settings"]

    found: list[dict[str, Any]] = []
    for share in DROPPED:
        for kind, choice in chosen.items():
            for timed in (True, False) if share else (True,):
                begin, accuracy = time.process_time(), []
                for seed in range(seeds):
                    data = dropped(events, share, seed)
                    data = data if timed else without_times(data)
                    model = PhasedLSTMClassifier(**settings, **choice, random_state=seed).fit(
                        data[train], labels[train]
                    )
                    accuracy.append(model.score(data[test], labels[test]))
                seconds = round((time.process_time() - begin) / seeds, 1)
                row = {"kind": kind, "dropped": share, "times": timed, "accuracy": accuracy, "seconds_per_fit": seconds}
                found.append(row)
                how = "with times" if timed else "without times"
                print(f"test: {kind}, {share:.0%} dropped, {how}: {spread(accuracy)}, {seconds} s a fit")
    report(options, {"settings": settings, "validation": tuned, "chosen": chosen, "test": found}, drawn(found))


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """Mean test accuracy against the share that is dropped, with the single seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for colour, kind in (("#D55E00", "Phased LSTM"), ("#0072B2", "LSTM")):
        for timed in (True, False):
            of = [row for row in rows if row["kind"] == kind and (row["times"] == timed or not row["dropped"])]
            shares, scores = [row["dropped"] for row in of], [row["accuracy"] for row in of]
            axes.plot(
                shares, [sum(each) / len(each) for each in scores], color=colour, linestyle="-" if timed else "--",
                label=f"{kind}, {'real times' if timed else 'no times'}",
            )  # fmt: skip
            for share, each in zip(shares, scores, strict=True):
                axes.plot([share] * len(each), each, color=colour, linestyle="none", marker="o" if timed else "x")
    axes.set_xlabel("share of samples dropped, in training and test")
    axes.set_ylabel("test accuracy")
    axes.set_title("Character trajectories, 20 letters")
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
