"""The commands from tables to a trained network and its predictions. Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import RunError
from .option_files import read_yaml, to_yaml
from .options import add_options, filled, path
from .training.table_config import LENIENCE, TrainConfig, resumed

_INTERRUPTED = 130
_TRAIN = "Train a network on a table of measurements and a table of labels."
_EVALUATE = "Evaluate a trained network on other tables."
_PREDICT = "Write a network's predictions for a table of measurements."
_LENIENCE = "what is an error (default: as the run was trained)"
_INSPECT = "Show a run's network, the periods and openness of its gates, and its training curves."


def add_commands(commands: Any) -> None:
    """Add train, evaluate, predict and inspect to the subparsers of the main command."""
    train = commands.add_parser("train", help=_TRAIN, description=_TRAIN)
    add_options(train, TrainConfig)
    train.add_argument("--config", type=path, help="YAML file of options; those of the command line come first")
    train.add_argument(
        "--print_config", "--print-config", action="store_true", help="print the options as YAML, and end"
    )
    train.add_argument("--out", type=path, help="run folder (default: runs/train-TIME)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own options")
    train.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help=_EVALUATE, description=_EVALUATE)
    evaluate.add_argument("run", type=path, metavar="RUN", help="folder of a finished run")
    evaluate.add_argument("--data", type=filled, required=True, help="table of measurements")
    evaluate.add_argument("--labels", type=filled, required=True, help="table of labels")
    evaluate.add_argument("--out", type=path, help="folder for evaluation.json and pictures (default: none)")
    add_options(evaluate.add_argument_group(_LENIENCE), TrainConfig, only=LENIENCE)
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help=_PREDICT, description=_PREDICT)
    predict.add_argument("run", type=path, metavar="RUN", help="folder of a finished run")
    predict.add_argument("--data", type=filled, required=True, help="table of measurements")
    predict.add_argument("--labels", type=filled, help="table with the static features, where the network reads some")
    predict.add_argument("--out", type=path, required=True, help="file to write: .parquet or .csv")
    add_options(predict.add_argument_group(_LENIENCE), TrainConfig, only=LENIENCE)
    predict.set_defaults(command=_predict)

    inspect = commands.add_parser("inspect", help=_INSPECT, description=_INSPECT)
    inspect.add_argument("run", type=path, metavar="RUN", help="folder of a finished run")
    inspect.add_argument("--out", type=path, help="folder for the pictures (default: RUN)")
    inspect.set_defaults(command=_inspect)


def _train(options: argparse.Namespace) -> int:
    names = {item.name for item in fields(TrainConfig)}
    given: dict[str, Any] = {} if options.config is None else read_yaml(options.config, TrainConfig)
    given |= {name: value for name, value in vars(options).items() if name in names}
    source = "the command line" if options.config is None else str(options.config)
    # Checks names and types, which a command line alone has already.
    TrainConfig.from_json(given, source)
    if options.print_config:
        print(to_yaml(TrainConfig.from_json(given, source)))
        return 0
    if options.resume and options.overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    if options.resume:
        if options.out is None:
            raise RunError("--resume needs --out RUN, the folder of the run to go on with")
        from .training.saved_runs import saved

        config = resumed(saved(options.out)[0], given)
    else:
        config = TrainConfig.from_json(given, source)
        config.require_tables()
    out = options.out or Path("runs") / f"train-{datetime.now():%Y%m%d-%H%M%S}"

    from .training.launch import leave, process_group
    from .training.table_run import train_tables

    if options.out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError("with several ranks name the run folder: --out RUN")
    with process_group(out) as leads:
        results = train_tables(
            config, out, resume=options.resume, overwrite=options.overwrite, progress=not options.quiet,
            announce=lambda line: print(line, flush=True),
        )  # fmt: skip
    if not leads:
        return leave(0 if results is not None else _INTERRUPTED)
    if results is None:
        print(f"interrupted; go on with: phased-lstm train --out {out} --resume")
        return leave(_INTERRUPTED)
    _draw(out)
    if results["stopped_early"]:
        print(f"stopped early: no better {config.monitor} for {config.patience} epoch(s) (--patience)")
    for part in ("train", "valid", "test"):
        if part in results:
            print(f"{part}, {results['sequences'][part]} sequences: {_shown(results[part])}")
    print(f"Run: {out}")
    return leave(0)


def _draw(run: Path) -> None:
    """The pictures of a finished run, from its files."""
    from .models import SequenceNetwork
    from .plot_training import plot_evaluation, plot_log
    from .training.checkpoints import load_tensors
    from .training.runs import EVALUATION, MODEL_FOLDER

    tensors, _ = load_tensors(run / EVALUATION)
    config = SequenceNetwork.load(run / MODEL_FOLDER).config
    plot_evaluation(config, tensors["outputs"], tensors["labels"], run)
    plot_log(run, run / "curves.png")


def _evaluate(options: argparse.Namespace) -> int:
    from .plot_training import plot_evaluation
    from .training.runs import write_json
    from .training.table_run import evaluate_tables

    network, found = evaluate_tables(options.run, options.data, options.labels, _lenience(options))
    print(f"{len(found.labels)} sequences: {_shown(found.figures)}")
    if options.out is not None:
        try:
            write_json(options.out / "evaluation.json", {"sequences": len(found.labels), **found.figures})
        except OSError as error:
            raise RunError(f"{options.out} cannot be written: {error}") from error
        for picture in plot_evaluation(network.config, found.outputs, found.labels, options.out):
            print(picture)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from .training.table_predict import predict_table

    count = predict_table(options.run, options.data, options.out, options.labels, _lenience(options))
    print(f"{count} sequences: {options.out}")
    return 0


def _lenience(options: argparse.Namespace) -> dict[str, str]:
    return {name: value for name, value in vars(options).items() if name in LENIENCE}


def _inspect(options: argparse.Namespace) -> int:
    from .plot_training import plot_log, plot_periods
    from .training.inspection import describe, gate_reports
    from .training.saved_runs import load_run

    out = options.out or options.run
    print(describe(options.run))
    unit = load_run(options.run)[1].time_unit or "unit of the times"
    print(f"\n{plot_periods(gate_reports(options.run), unit, out / 'periods.png')}")
    print(plot_log(options.run, out / "curves.png"))
    return 0


def _shown(figures: dict[str, float]) -> str:
    from .training.fitting import monitors_of

    text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    absent = [
        name for name in monitors_of("classification" if "accuracy" in figures else "regression") if name not in figures
    ]
    return text + (f" (too little to measure {', '.join(absent)})" if absent else "")
