"""Shared by the commands: their arguments, cases and networks made ready, a meter, and how results are reported."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from inference.bundle.store import load_bundle
from inference.case import System, open_system
from inference.errors import FolderError, UsageError
from inference.intake.cases import Case, CaseListing, find_cases
from inference.machine import available_threads, give_memory_back
from inference.settings import EMBEDDED, ENGINES, PROFILES
from training.data.datasets import labels_of

_LOG = logging.getLogger(__name__)

GB: Final = 1e9
"""Memory is reported in 10⁹ bytes."""


def add_system_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what names the networks, the cases, and where they run."""
    parser.add_argument("--bundle", type=Path, default=EMBEDDED, metavar="DIR", help="(default: the embedded one)")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of the cases")
    parser.add_argument("--profile", choices=PROFILES, default="auto")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=positive, metavar="N", help="(default: all that may be used)")
    parser.add_argument("--networks", type=positive, metavar="K", help="only the first K networks of each model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a file as well")


def positive(text: str) -> int:
    """A count on the command line, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number, at least 1")
    return int(text)


def open_limited(arguments: argparse.Namespace) -> System:
    """The bundle's networks made ready, the first `--networks` of each model where that is given."""
    # As `infer` does, whose memory is measured.
    give_memory_back()
    arguments.threads = arguments.threads or available_threads()
    # Read by torch and OpenVINO when they are loaded, which is later.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    bundle = load_bundle(arguments.bundle)
    models = tuple(model.of_folds(*model.folds[: arguments.networks]) for model in bundle.models)
    return open_system(
        replace(bundle, models=models),
        profile=arguments.profile,
        engine=arguments.engine,
        device=arguments.device,
        threads=arguments.threads,
    )


def cases_in(folder: Path) -> CaseListing:
    """The complete cases of a folder, of which there is at least one."""
    listing = find_cases(folder)
    if not listing.cases:
        raise FolderError(f"{folder}: no complete case to measure with")
    return replace(listing, problems=())


def labelled_cases(folders: Sequence[Path]) -> Iterator[tuple[Case, Path]]:
    """The complete cases below the folders that have a reference, each with its label map; others are warned of."""
    for folder in folders:
        for case in find_cases(folder).cases:
            try:
                yield case, labels_of(case.id, case.paths["t1n"].parent)
            except UsageError as error:
                _LOG.warning("left out: %s", error)


def report(result: Mapping[str, object], file: Path | None) -> None:
    """Print a result as JSON, and write it to a file where one is named."""
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    if file:
        file.write_text(text, encoding="utf-8")


class Meter:
    """Wall and processor seconds of a `with` block, and the GPU's memory at most on top of what lay there before."""

    wall = processor = 0.0
    gpu: float | None = None

    def __init__(self, device: str) -> None:
        self._gpu = device if device != "cpu" else None

    def __enter__(self) -> Meter:
        if self._gpu:
            import torch

            torch.cuda.synchronize(self._gpu)
            torch.cuda.reset_peak_memory_stats(self._gpu)
            self._held = torch.cuda.memory_allocated(self._gpu)
        self._begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpu:
            import torch

            torch.cuda.synchronize(self._gpu)  # kernels run on after the call that starts them has returned
            self.gpu = round((torch.cuda.max_memory_allocated(self._gpu) - self._held) / GB, 3)
        self.wall, self.processor = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
