"""The command `phased-lstm`. Heavy imports wait until a command runs, so that help is instant."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from . import __version__
from .cli_train import add_commands
from .errors import DataError, RunError
from .experiments.config import MnistConfig
from .options import add_options, path, whole

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, *, prog: str = "phased-lstm") -> int:
    """Run a command.

    Args:
        arguments: of the command line; default those of the process.
        prog: the program's name in help and errors.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    options = _parser(prog).parse_args(arguments)
    return _guarded(prog, options.command, options)


def main_mnist(arguments: Sequence[str] | None = None, *, prog: str = "mnist_phased_lstm.py") -> int:
    """Run `phased-lstm mnist` under its historic name."""
    parser = argparse.ArgumentParser(prog=prog, description=_MNIST_HELP)
    _add_mnist_options(parser)
    return _guarded(prog, _mnist, parser.parse_args(arguments))


def _guarded(prog: str, command: Any, options: argparse.Namespace) -> int:
    _let_threads_sleep()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"{prog}: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True
            )
            return int(command(options))
    except BrokenPipeError:
        return 1
    except (DataError, RunError, ImportError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{prog}: stopped", file=sys.stderr)
        return _INTERRUPTED


def _let_threads_sleep() -> None:
    """Have threads that wait for others sleep rather than spin, unless the user has said how they wait.

    A spinning thread takes the processor from the one that it waits for wherever threads are more than free cores, and
    training then takes many times as long. OpenMP reads this once, when torch is loaded.
    """
    if "torch" not in sys.modules and not any(
        name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


_MNIST_HELP = "Train a recurrent network of 32 units on handwritten digits, read as sequences of 784 pixels."
_DEMO_HELP = "Train Basic LSTM and Phased LSTM on scikit-learn's digits, print a table and draw the curves."


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Phased LSTM: recurrent networks with a time gate.")
    parser.add_argument("--version", action="version", version=f"phased-lstm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    mnist = commands.add_parser("mnist", help=_MNIST_HELP, description=_MNIST_HELP)
    _add_mnist_options(mnist)
    mnist.set_defaults(command=_mnist)

    demo = commands.add_parser("demo", help=_DEMO_HELP, description=_DEMO_HELP)
    demo.add_argument("--out", type=path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    demo.add_argument("--steps", type=int, default=300, help="training steps of each model (default: %(default)s)")
    demo.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for torch's choice")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(command=_demo)

    plot_help = "Draw accuracy and cross-entropy of runs over steps, and the time gate above the state it holds."
    plot = commands.add_parser("plot", help=plot_help, description=plot_help)
    plot.add_argument("runs", type=path, nargs="+", metavar="RUN", help="run folders")
    plot.add_argument("--out", type=path, help="folder for the pictures (default: the first RUN)")
    plot.set_defaults(command=_plot)

    run_help = "Run an experiment of the paper or of later ones, variant by variant and seed by seed."
    run = commands.add_parser("experiment", help=run_help, description=run_help)
    run.add_argument("name", nargs="?", metavar="NAME", help="which one; --list tells them")
    run.add_argument("--list", action="store_true", help="list the experiments and their variants")
    run.add_argument(
        "--quick", action="store_true", help="small sizes and one seed: shows the trend in a minute or two"
    )
    run.add_argument("--variants", nargs="+", metavar="VARIANT", help="only these rows")
    run.add_argument(
        "--seeds", nargs="+", type=whole(0), metavar="SEED", help="only these seeds (default: the protocol's)"
    )
    run.add_argument("--steps", type=whole(1), help="training steps of each run (default: the protocol's)")
    run.add_argument(
        "--out",
        type=path,
        help="folder of the runs; finished ones are kept, begun ones go on (default: runs/experiments/NAME)",
    )
    run.add_argument("--results", type=path, help="folder of summary.json and pictures (default: that of the runs)")
    run.add_argument("--summary-only", action="store_true", help="train nothing, gather what is finished")
    run.add_argument(
        "--keep",
        action="store_true",
        help="add to the runs that the summary in --results has, of which none need be here; of two of one seed the "
        "longer one is taken",
    )
    run.add_argument(
        "--report",
        type=path,
        metavar="FOLDER",
        help="only make the tables of FOLDER/RESULTS.md anew from its summaries",
    )
    run.add_argument(
        "--time",
        type=whole(0),
        default=0,
        metavar="ROUNDS",
        help="first time a training step of each variant, in turns, so many times",
    )
    run.add_argument("--threads", type=whole(0, 1024), default=0, help="CPU threads, 0 for torch's choice")
    run.add_argument("--device", default="cpu", help="cpu, or cuda, which is for the baselines (default: cpu)")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(command=_experiment)

    add_commands(commands)

    info_help = "Show versions and which backends can be used here."
    commands.add_parser("info", help=info_help, description=info_help).set_defaults(command=_info)
    return parser


def _add_mnist_options(parser: argparse.ArgumentParser) -> None:
    add_options(parser, MnistConfig, {"model": "-m"})
    parser.add_argument("--out", type=path, help="run folder (default: runs/DATA-MODEL-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own options")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _mnist(options: argparse.Namespace) -> int:
    names = {item.name for item in fields(MnistConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if options.resume and options.out is None:
        raise RunError("--resume needs --out RUN, the folder of the run to go on with")
    if options.resume and options.overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    config = MnistConfig(**given) if not options.resume else None

    from .experiments import mnist

    if config is None:
        config = mnist.resumed_config(options.out, given)
    out = options.out or Path("runs") / f"{config.data}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    results = mnist.run(config, out, resume=options.resume, overwrite=options.overwrite, progress=not options.quiet)
    if results is None:
        print(f"interrupted; go on with: phased-lstm mnist --out {out} --resume")
        return _INTERRUPTED
    print(
        f"{results['model']} after {results['steps']} steps: training accuracy "
        f"{results['train_accuracy_last_100']:.4f} (mean of the last 100 steps), "
        f"test accuracy {results['test_accuracy']:.4f} on all {results['test_images']} test images, "
        f"{results['seconds_per_step']:.3f} s a step. Run: {out}"
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .experiments import demo

    return demo.run(options.out, steps=options.steps, threads=options.threads, progress=not options.quiet)


def _experiment(options: argparse.Namespace) -> int:
    from .experiments import registry

    if options.list:
        for name in registry.MODULES:
            made = registry.find(name)
            print(f"{name}: {made.title}\n    {', '.join(variant.name for variant in made.variants(False))}")
        return 0
    if options.report is not None:
        from .experiments import report

        print(report.refresh(options.report))
        return 0
    if options.name is None:
        raise RunError(f"name an experiment: {', '.join(registry.MODULES)}")
    experiment = registry.find(options.name)

    import torch

    from .experiments import runner

    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out or Path("runs/experiments") / (options.name + ("-quick" if options.quick else ""))
    results = options.results or out
    if options.keep:
        # What cannot be kept is better known before hours of training.
        runner.kept_summary(experiment, results, quick=options.quick)
    if options.time:
        runner.time_steps(
            experiment, out, quick=options.quick, variants=options.variants, rounds=options.time, device=options.device
        )
    if not options.summary_only and not runner.run(
        experiment, out, quick=options.quick, variants=options.variants, seeds=options.seeds, steps=options.steps,
        device=options.device, progress=not options.quiet,
    ):  # fmt: skip
        print("interrupted; the same command goes on")
        return _INTERRUPTED
    summary = runner.summarise(experiment, out, results, quick=options.quick, keep=options.keep)
    print(f"{experiment.title}\n\n{runner.table(summary)}\n")
    for written in (results / runner.SUMMARY, *experiment.figures(summary, results)):
        print(written)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from .plotting import GATE, plot_runs

    written = plot_runs(options.runs, options.out or options.runs[0])
    for picture in written:
        print(picture)
    if all(picture.name != GATE for picture in written):
        print(f"no {GATE}: none of these is a finished run of a network with time gates", file=sys.stderr)
    return 0


def _info(options: argparse.Namespace) -> int:
    import torch

    from . import backends
    from .ops import native

    print(f"phased-lstm {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, status in backends().items():
        print(f"backend {name}: {'available' if status.available else 'missing: ' + status.reason}")
    if backends()["native"].available:
        print(f"native kernels use {native.instruction_set()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
