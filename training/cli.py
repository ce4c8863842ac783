"""`python -m training`: one subcommand per step of the pipeline, and the evaluation of what comes out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from inference.errors import ExitStatus, SeveralErrors, UsageError, no_module, reason
from inference.files import prepare_folder
from inference.machine import available_threads
from inference.signals import Signals
from inference.text import printable
from training.bundles import export_openvino, finer_grid, import_checkpoints, import_ranked
from training.config import STAGES, TRAININGS, RunConfig
from training.config_file import load_config, settle_config
from training.data import synthetic
from training.evaluation import compare, evaluate, submission
from training.fit.devices import own_gpu
from training.locks import alone
from training.report import picture

log = logging.getLogger("training")

SNAKEFILE = Path(__file__).with_name("Snakefile")
"""The pipeline as a graph."""


def _cases(config: RunConfig, work: Path, _: argparse.Namespace) -> None:
    """List the cases of every source."""
    from training.data.datasets import list_cases, with_contents, write_json

    write_json(with_contents(list_cases(config), config), work / "cases.json")


def _folds(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Describe the reference tumours, cluster them and deal the cases into folds."""
    from training.data.stratify import stratify

    stratify(config, work, jobs=arguments.jobs)


def _dataset(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Write one stage's cases as nnU-Net's raw data set."""
    from training.data.datasets import read_cases, write_dataset

    entries = read_cases(work / "cases.json")
    write_dataset(config, arguments.stage, entries, work / "nnunet" / "raw", jobs=arguments.jobs)


def _plan(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Plan every model on the first stage's data."""
    from training.fit import planning

    planning.plan(config, work, jobs=arguments.jobs or available_threads())


def _preprocess(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Preprocess one stage's data for one model."""
    from training.fit import planning

    jobs = arguments.jobs or available_threads()
    planning.preprocess(config, work, arguments.stage, arguments.model, jobs=jobs)


def _splits(config: RunConfig, work: Path, _: argparse.Namespace) -> None:
    """Write nnU-Net's splits of every stage and check that nothing leaks."""
    from training.fit.train import write_splits

    write_splits(config, work)


def _train(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Train one network, or go on with it."""
    from training.fit import train

    where = (arguments.stage, arguments.model, arguments.fold)
    with own_gpu(work):
        train.train(config, work, *where, device=arguments.device, threads=arguments.threads)


def _predict(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Predict the cases of one fold with the network that has not seen them."""
    from training.fit.predict import predict_fold

    with own_gpu(work):
        predict_fold(config, work, arguments.model, arguments.fold, arguments.stage)


def _tune(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Choose ensemble weights, subtypes and thresholds out of fold."""
    from training.tune.tune import tune

    tune(config, work, jobs=arguments.jobs)


def _freeze(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Freeze the run as a bundle."""
    from training.bundles import freeze

    freeze.freeze(config, work, arguments.bundle or work / "bundle", revision=arguments.revision)


def _report(config: RunConfig, work: Path, arguments: argparse.Namespace) -> None:
    """Write what the run shows, or shows so far: one page, and its tables beside it."""
    from training.report.report import write_report

    log.info("report: %s", write_report(config, work, revision=arguments.revision, jobs=arguments.jobs))


STEPS: dict[str, tuple[Callable[[RunConfig, Path, argparse.Namespace], None], tuple[str, ...]]] = {
    "cases": (_cases, ()),
    "folds": (_folds, ("jobs",)),
    "dataset": (_dataset, ("stage", "jobs")),
    "plan": (_plan, ("jobs",)),
    "preprocess": (_preprocess, ("stage", "model", "jobs")),
    "splits": (_splits, ()),
    "train": (_train, ("training", "model", "fold", "device", "threads")),
    "predict": (_predict, ("predictor", "model", "fold")),
    "tune": (_tune, ("jobs",)),
    "freeze": (_freeze, ("bundle", "revision")),
    "report": (_report, ("revision", "jobs")),
}
"""The steps in their order, and which of :data:`OPTIONS` each takes."""


class Tool(Protocol):
    """A module with a command of its own."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare its arguments."""

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Carry it out and return the exit status."""


TOOLS: dict[str, tuple[Tool, str]] = {
    "evaluate": (evaluate, "Score predicted label maps by the official definitions."),
    "compare": (compare, "Compare systems that were scored on the same cases."),
    "check-submission": (submission, "Check label maps against the rules of the challenges."),
    "phantoms": (synthetic, "Write synthetic cases with known truth."),
    "import-checkpoints": (import_checkpoints, "Make a bundle of checkpoints of nnU-Net v2 and of mednextv1."),
    "import-ranked": (import_ranked, "Make a bundle of the ranked system, out of its authors' own image."),
    "export-openvino": (export_openvino, "Write a bundle again with its networks as OpenVINO IR."),
    "finer-grid": (finer_grid, "Write a bundle again with its networks on a finer grid, to start a run from."),
    "picture": (picture, "Draw a case with predicted and reference regions and the score."),
}
"""Commands that need no configuration, and what they do."""

OPTIONS: dict[str, Callable[[argparse.ArgumentParser], object]] = {
    "stage": lambda step: step.add_argument("--stage", choices=STAGES, required=True),
    "training": lambda step: step.add_argument("--stage", choices=TRAININGS, required=True),
    "predictor": lambda step: step.add_argument("--stage", choices=TRAININGS, default="finetuning"),
    "model": lambda step: step.add_argument("--model", required=True, help="name of the model in the configuration"),
    "fold": lambda step: step.add_argument("--fold", type=int, required=True, help="number of the fold, from 0"),
    "device": lambda step: step.add_argument("--device", default="auto", help="auto, cpu or cuda"),
    "threads": lambda step: step.add_argument(
        "--threads", type=int, default=0, help="threads of a CPU; 0 leaves the choice to torch"
    ),
    "jobs": lambda step: step.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="processes (default: one per core)"
    ),
    "bundle": lambda step: step.add_argument(
        "--bundle", type=Path, help="folder to write (default: bundle in the work folder)"
    ),
    "revision": lambda step: step.add_argument(
        "--revision", default="unknown", help="revision of the code, for the provenance"
    ),
}
"""Options that steps take beside the configuration and the folder."""


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their arguments."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (step, options) in STEPS.items():
        command = commands.add_parser(name, help=step.__doc__, description=step.__doc__)
        command.add_argument("--config", type=Path, required=True, help="YAML file that describes the run")
        command.add_argument("--work", type=Path, required=True, help="folder that holds everything the run makes")
        for option in options:
            OPTIONS[option](command)
    run_all = commands.add_parser("run", help=run.__doc__, description=run.__doc__)
    run_all.add_argument("--config", type=Path, required=True, help="YAML file that describes the run")
    run_all.add_argument("--work", type=Path, required=True, help="folder that holds everything the run makes")
    run_all.add_argument("--cores", type=int, default=available_threads(), help="cores to use (default: all)")
    run_all.add_argument("--gpus", type=int, default=1, help="GPUs to use, a training on each (default: 1)")
    run_all.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="where a source's cases lie on this machine",
    )
    run_all.add_argument(
        "--variant", action="append", default=[], metavar="NAME", help="one of the configuration's `variants` to run"
    )
    run_all.add_argument("--revision", help="revision of the code for the provenance (default: what git says)")
    run_all.add_argument("--dry-run", action="store_true", help="only list the jobs")
    run_all.add_argument(
        "--slurm", type=int, nargs="?", const=100, metavar="JOBS", help="submit to Slurm, so many jobs at a time (100)"
    )
    run_all.add_argument(
        "--program", metavar="WORDS", help='what runs a step, such as "apptainer run --nv --bind /data training.sif"'
    )
    run_all.add_argument("snakemake", nargs="*", metavar="-- OPTION", help="further options, for Snakemake itself")
    for name, (tool, text) in TOOLS.items():
        tool.add_arguments(commands.add_parser(name, help=text, description=text))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the whole pipeline; what is done is kept, what was stopped goes on."""
    from training.data.datasets import follow_changes

    # Snakemake makes a pattern of this path to find its locks, in which braces are wildcards.
    if set(os.path.realpath(arguments.work)) & set("{}"):
        raise UsageError(f"--work {arguments.work}: found braces in its path, which Snakemake does not work in")
    prepare_folder(arguments.work)
    # Jobs read a copy with absolute folders: the file that was given may change while they wait.
    settled = arguments.work / "config.yaml"
    words = ["--snakefile", str(SNAKEFILE), "--directory", str(arguments.work)]
    if arguments.slurm:  # this machine's cores and GPUs say nothing about the cluster's
        words += ["--executor", "slurm", "--jobs", str(arguments.slurm)]
    else:
        words += ["--cores", str(arguments.cores), "--resources", f"gpu={arguments.gpus}"]
    # By times alone: Snakemake would also run all anew where its rules or this program's words have changed. The
    # folder's lock is ours: Snakemake's stays behind where a run is killed.
    words += ["--rerun-triggers", "mtime", "--rerun-incomplete", "--nolock", *arguments.snakemake]
    given = {"run": os.path.realpath(settled), "revision": arguments.revision or code_revision()}
    given |= {"program": arguments.program} if arguments.program else {}
    # Snakemake strips quotes and takes what is left for a number or YAML: only in a list are texts what they are.
    words += ["--config", *(f"{key}={json.dumps([value], ensure_ascii=False)}" for key, value in given.items())]
    with alone(arguments.work / "locks" / "run", f"running the graph in {arguments.work}"):
        settle_config(arguments.config, arguments.source, settled, arguments.variant)
        follow_changes(load_config(settled), arguments.work / "cases.json")
        from snakemake.cli import main as snakemake  # takes seconds, which a wrong configuration does not wait for

        try:
            snakemake(words + ["--dry-run"] * arguments.dry_run)
        except SystemExit as stopped:
            return ExitStatus.OK if not stopped.code else ExitStatus.CASE_FAILED
    return ExitStatus.OK


def code_revision() -> str:
    """The revision of this code as git names it, with `-dirty` where it was changed since; unknown without git."""
    # Without tags, of which a shallow clone has none: the same commit is called the same everywhere.
    words = ["git", "-C", str(SNAKEFILE.parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class _SafeFormatter(logging.Formatter):
    """Escapes control characters in names from outside, so that they do not command a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 0, or 2 with a line for each thing that is wrong."""
    console = logging.StreamHandler()
    console.setFormatter(_SafeFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console])
    logging.raiseExceptions = False  # Snakemake's log on a full disk would show tracebacks
    if os.environ.get("GLIOMA_DEBUG"):
        log.setLevel(logging.DEBUG)
    parsed = build_parser().parse_args(arguments)
    try:
        if parsed.command == "run":  # Snakemake answers signals itself
            return run(parsed)
        with Signals().answered(last=False):
            return _carry_out(parsed)
    except BrokenPipeError:
        log.debug("the reader of standard output has gone")
    except KeyboardInterrupt as stop:
        log.error("error: ended by %s", str(stop) or "SIGINT")
    except ModuleNotFoundError as error:
        log.debug("no module", exc_info=True)
        log.error("error: %s", no_module(error))
    except Exception as error:
        log.debug("failed", exc_info=True)
        for one in error.errors if isinstance(error, SeveralErrors) else (error,):
            log.error("error: %s", reason(one, ""))
    return ExitStatus.NOTHING_ATTEMPTED


def _carry_out(parsed: argparse.Namespace) -> int:
    if parsed.command in TOOLS:
        return TOOLS[parsed.command][0].run(parsed)
    config = load_config(parsed.config)
    prepare_folder(parsed.work)
    STEPS[parsed.command][0](config, parsed.work, parsed)
    return ExitStatus.OK
