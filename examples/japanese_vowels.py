"""Which of nine speakers said a vowel, from 7 to 29 steps of 12 coefficients: the scikit-learn interface.

Settings are chosen by cross-validation on the 270 training series; the 370 test series are used once, at the end. An
LSTM stands beside: a Phased LSTM whose gates are open all the time.

    python examples/japanese_vowels.py --results docs/results/examples/japanese_vowels
"""

from __future__ import annotations

import time
from typing import Any

from reporting import options_of, parsed, report, spread
from sklearn.model_selection import ParameterGrid, StratifiedKFold, cross_val_score

from phased_lstm import PhasedLSTMClassifier
from phased_lstm.data.series import load_japanese_vowels
from phased_lstm.plotting import Figure

# Of a typical series of 15 steps a unit at 0.05 sees one, at 0.2 three: hence the large ratios.
RATIOS = (0.05, 0.2, 0.5, 1.0)
# k = 1 at all times, which leaves the equations of torch.nn.LSTM.
LSTM = {"oscillation": "square", "ratio_on": 1.0}


def main() -> None:
    parser = options_of(__doc__, seeds=5)
    parser.add_argument("--no-checksums", action="store_true", help="read other files of the same names and format")
    options = parsed(parser)
    train, test = load_japanese_vowels(options.data_dir, verify_checksums=not options.no_checksums)
    X, y = train.data.events, train.data.labels
    print(f"train {X}\ntest {test.data.events}")

    # Series are few and training is short: every series is trained on, for a fixed number of epochs.
    fixed: dict[str, Any] = {"bidirectional": True, "dropout": 0.5, "early_stopping": False}
    grid: dict[str, list[Any]] = {"hidden_size": [64, 128], "epochs": [100]}
    seeds, folds = options.seeds, 5
    if options.quick:
        seeds, folds, grid = 1, 2, {"hidden_size": [8], "epochs": [2]}
    # Splits are the same for all settings.
    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    rows = []
    gates: list[tuple[str, dict[str, Any]]] = [("Phased LSTM", {"ratio_on": ratio}) for ratio in RATIOS]
    for kind, gate in [*gates, ("LSTM", LSTM)]:
        for setting in ParameterGrid(grid):
            begin = time.process_time()
            model = PhasedLSTMClassifier(**fixed, **gate, **setting, random_state=0)
            scores = cross_val_score(model, X, y, cv=parts)
            rows.append({
                "kind": kind, "settings": gate | setting, "mean": float(scores.mean()), "folds": scores.tolist(),
                "seconds": round(time.process_time() - begin, 1),
            })  # fmt: skip
            print(f"cross-validation: {kind} {gate | setting}: {spread(scores.tolist())}, {rows[-1]['seconds']} s")

    figures = {}
    for kind in ("Phased LSTM", "LSTM"):
        best = max((row for row in rows if row["kind"] == kind), key=lambda row: float(row["mean"]))
        begin = time.process_time()
        models = (
            PhasedLSTMClassifier(**fixed, **best["settings"], random_state=seed).fit(X, y) for seed in range(seeds)
        )
        accuracy = [model.score(test.data.events, test.data.labels) for model in models]
        seconds = round((time.process_time() - begin) / seeds, 1)
        figures[kind] = {"settings": best["settings"], "test_accuracy": accuracy, "seconds_per_fit": seconds}
        print(f"test: {kind} {best['settings']}: {spread(accuracy)}, {seconds} s a fit")
    report(options, {"fixed": fixed, "cross_validation": rows, "test": figures}, drawn(rows))


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy in cross-validation against the open ratio."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, size in enumerate(sorted({row["settings"]["hidden_size"] for row in rows})):
        of_size = [row for row in rows if row["settings"]["hidden_size"] == size]
        phased = [(row["settings"]["ratio_on"], row["mean"]) for row in of_size if row["kind"] == "Phased LSTM"]
        axes.plot(*zip(*phased, strict=True), color=f"C{index}", marker="o", label=f"Phased LSTM, {size} units")
        always = max(row["mean"] for row in of_size if row["kind"] == "LSTM")
        axes.axhline(always, color=f"C{index}", linestyle="--", label=f"LSTM, {size} units")
    axes.set_xlabel("open ratio")
    axes.set_ylabel("accuracy in cross-validation")
    axes.set_title("Japanese vowels: short series need a large open ratio")
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
