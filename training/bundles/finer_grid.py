"""A bundle's networks on a finer grid: the same answers at first, and able to learn finer ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from inference.bundle.store import Bundle, Model, load_bundle
from inference.bundle.tables import FloatArray
from inference.bundle.writing import contents_of, write_bundle
from inference.errors import ExitStatus, UsageError
from inference.labels import REGIONS, SEQUENCES
from training.fit.planning import CONFIGURATION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `finer-grid`."""
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle to start from")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="bundle to write")
    parser.add_argument(
        "--factor", type=int, default=2, choices=(2, 3, 4), help="how much finer (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle."""
    to_finer_grid(arguments.bundle, arguments.output, arguments.factor)
    return ExitStatus.OK


def to_finer_grid(source: Path, target: Path, factor: int) -> Bundle:
    """Write to `target` the bundle in `source` with its networks on a grid `factor` times finer.

    The bodies stay as they are and keep their grid; voxels become channels before them and channels voxels after them
    (`shuffle` in the architecture). Every part of a block starts with the weights that the block had, so that a network
    gives what it gave for the mean of each block, repeated over it. As an ancestor of a run it learns the rest. Raises
    UsageError for networks that are shuffled already or are no region heads in safetensors.
    """
    bundle = load_bundle(source)
    contents, manifest = contents_of(bundle), bundle.manifest
    models = [_finer(model, factor) for model in bundle.models]
    itself = f"{manifest.name} {manifest.version}, manifest sha256 {bundle.digest}, on a grid {factor} times finer"
    provenance = replace(manifest.provenance, ancestry=(*manifest.provenance.ancestry, itself))
    return write_bundle(target, replace(contents, models=models, provenance=provenance, scores={}))


def _finer(model: Model, factor: int) -> Model:
    if model.format != "safetensors" or model.heads != "regions" or "shuffle" in model.architecture:
        raise UsageError(f"{model.name}: expected safetensors with heads for regions and a body on the input's grid")
    configurations = model.plans["configurations"]
    assert isinstance(configurations, dict)
    configuration = configurations[CONFIGURATION]
    finer = configuration | {
        "spacing": [edge / factor for edge in configuration["spacing"]],
        "patch_size": [length * factor for length in configuration["patch_size"]],
        "architecture": configuration["architecture"] | {"shuffle": factor},
    }
    plans = {**model.plans, "configurations": {CONFIGURATION: finer}}
    networks = {fold: _widened(model.tensors(fold), finer["architecture"], factor**3) for fold in model.folds}
    return Model(model.entry, plans, networks)


def _widened(
    tensors: Mapping[str, FloatArray], architecture: Mapping[str, object], parts: int
) -> dict[str, FloatArray]:
    """Tensors of the first and last layer with a channel for each of a block's `parts`; inputs share their weight."""
    import torch

    from inference.predict.networks import build_network

    with torch.device("meta"):
        network = build_network(architecture, len(SEQUENCES), len(REGIONS))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    widened: dict[str, FloatArray] = {}
    for name, array in tensors.items():
        grown = array.astype(np.float32)
        for axis, (found, wanted) in enumerate(zip(array.shape, shapes[name], strict=True)):
            if wanted != found:
                # Inputs of a block add up to what its mean gave. Every output of a block is what the block's was.
                grown = np.repeat(grown, parts, axis) / np.float32(parts if found == len(SEQUENCES) else 1)
        widened[name] = grown
    return widened
