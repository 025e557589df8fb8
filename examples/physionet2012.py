"""Who dies in hospital, from the first 48 hours in intensive care: PhysioNet 2012 with the scikit-learn interface.

Each split draws a fifth of the stays for test. Settings were chosen with --validate, which holds back a fifth of the
rest instead and never looks at the test part. Networks of a split differ in their seed; their mean is an ensemble.

    python examples/physionet2012.py --results docs/results/examples/physionet2012
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from reporting import options_of, parsed, report
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import QuantileTransformer

from phased_lstm import PhasedLSTMClassifier
from phased_lstm.data import EventBatch, EventDataset, last_measured
from phased_lstm.data.physionet2012 import DESCRIPTORS, Stays, load_physionet2012
from phased_lstm.plotting import Figure
from phased_lstm.training.metrics import classification

SETTINGS: dict[str, Any] = {
    "hidden_size": 64, "ratio_on": 0.5, "dropout": 0.5, "epochs": 5, "lr": 3e-3, "early_stopping": False,
}  # fmt: skip
PUBLISHED = 0.836


def features(stays: Stays, train: Any) -> EventDataset:
    """Return measured values, the last ones of each channel, and how old these are; static features beside."""
    values = _normal(stays.events[train].values, stays.events.values)
    measured = EventBatch(values, stays.events.times, stays.events.offsets)
    last, age = last_measured(measured)
    hours = (age.values / 60).log1p()
    events = EventBatch(torch.cat([values, last.values, hours], dim=1), measured.times, measured.offsets)
    unit = stays.static[:, DESCRIPTORS.index("ICUType")].long() - 1
    static = [_normal(stays.static[train], stays.static), torch.nn.functional.one_hot(unit, 4)]
    return EventDataset(events, None, torch.cat(static, dim=1))


def _normal(train: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Map each column's quantiles in the training part to those of a normal distribution, out to three deviations.

    Some measurements are typing errors by a factor of ten and more, which a mean and a deviation would follow.
    """
    transform = QuantileTransformer(n_quantiles=200, output_distribution="normal", random_state=0)
    found = transform.fit(train.numpy()).transform(values.numpy())
    return torch.from_numpy(found).float().clamp(-3.0, 3.0)


def run(stays: Stays, split: int, members: int, settings: dict[str, Any], validate: bool) -> dict[str, Any]:
    """Train the members of one split, and return their figures and those of their mean probabilities."""
    train, test = train_test_split(np.arange(len(stays.ids)), test_size=0.2, random_state=split)
    if validate:
        train, test = train_test_split(train, test_size=0.2, random_state=split)
    data, died = features(stays, train), stays.died.numpy()
    probabilities, singles, seconds = [], [], []
    for member in range(members):
        began = time.process_time()
        model = PhasedLSTMClassifier(**settings, random_state=1000 * split + member).fit(data[train], died[train])
        seconds.append(time.process_time() - began)
        probabilities.append(model.predict_proba(data[test]))
        singles.append(classification(probabilities[-1], died[test]))
        print(f"  split {split}, member {member}: AUROC {singles[-1]['auroc']:.4f}, {seconds[-1]:.1f} s", flush=True)
    _, times, lengths = data[test].events.padded()
    openness = float(model.network_.rnn.gates[0].openness(times, lengths).fraction.mean())
    return {
        "split": split, "ensemble": classification(np.mean(probabilities, axis=0), died[test]), "members": singles,
        "openness": openness, "updates_per_unit": openness * float(lengths.double().mean()), "seconds": seconds,
        "stays": {"train": len(train), "test": len(test)},
    }  # fmt: skip


def main() -> None:
    parser = options_of(__doc__, seeds=3)
    parser.add_argument("--splits", type=int, default=5, metavar="N", help="random splits (5)")
    parser.add_argument("--sets", nargs="+", default=["ab", "a"], help="sets of stays, one row each (ab a)")
    parser.add_argument("--validate", action="store_true", help="leave the test stays alone, to choose settings")
    parser.add_argument("--no-checksums", action="store_true", help="read other files of the same names and format")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the estimator")
    options = parsed(parser)
    if wrong := [entry for entry in options.set if entry.count("=") != 1]:
        parser.error(f"--set takes NAME=VALUE, got {wrong[0]}")
    settings = SETTINGS | {name: _number(value) for name, value in (entry.split("=") for entry in options.set)}
    splits, members = options.splits, options.seeds
    if options.quick:
        splits, members, settings = 1, 1, settings | {"epochs": 1, "hidden_size": 8}
    rows = []
    for sets in options.sets:
        stays = load_physionet2012(tuple(sets), options.data_dir, verify_checksums=not options.no_checksums)
        print(f"sets {sets}: {len(stays.ids)} stays, {100 * float(stays.died.double().mean()):.1f} % died")
        runs = [run(stays, split, members, settings, options.validate) for split in range(splits)]
        rows.append({"sets": sets, "summary": summary(runs), "runs": runs})
        for name, (mean, deviation) in rows[-1]["summary"].items():
            print(f"sets {sets}: {name} {mean:.4f} ± {deviation:.4f}")
    report(options, {"held_out": "validation" if options.validate else "test", "settings": settings, "rows": rows},
           drawn(rows))  # fmt: skip


def _number(text: str) -> Any:
    return float(text) if "." in text or "e-" in text else int(text) if text.isdigit() else text


def summary(runs: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation over the splits; of single networks, of each split's mean."""
    columns: dict[str, list[float]] = {}
    for found in runs:
        for name in ("auroc", "auprc"):
            columns.setdefault(f"{name} of one network", []).append(np.mean([one[name] for one in found["members"]]))
            columns.setdefault(f"{name} of {len(found['members'])} together", []).append(found["ensemble"][name])
        for name in ("openness", "updates_per_unit"):
            columns.setdefault(name, []).append(found[name])
        columns.setdefault("seconds a network", []).append(np.mean(found["seconds"]))
    spread = {name: float(np.std(column, ddof=1)) if len(column) > 1 else 0.0 for name, column in columns.items()}
    return {name: (float(np.mean(column)), spread[name]) for name, column in columns.items()}


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """AUROC of every split, of single networks and together."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        singles = [(found["split"], one["auroc"]) for found in row["runs"] for one in found["members"]]
        together = [(found["split"], found["ensemble"]["auroc"]) for found in row["runs"]]
        axes.plot(*zip(*singles, strict=True), ".", color=f"C{index}", label=f"sets {row['sets']}, one network")
        axes.plot(
            *zip(*together, strict=True), "D-", color=f"C{index}", label=f"sets {row['sets']}, all of a split together"
        )
    axes.axhline(PUBLISHED, color="grey", linestyle=":", label="published, Phased LSTM (mTAN)")
    axes.set_xticks(range(len(rows[0]["runs"])))
    axes.set_xlabel("split")
    axes.set_ylabel("AUROC")
    axes.set_title("PhysioNet 2012: death in hospital from 48 hours")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
