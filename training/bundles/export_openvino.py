"""A bundle's networks as OpenVINO IR: a CPU reads them as they are, and no graph is put together at start."""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from inference.bundle.store import Model, load_bundle
from inference.bundle.writing import contents_of, write_bundle
from inference.errors import ExitStatus, UsageError
from inference.predict.engines.base import heads_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `export-openvino`."""
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle to start from")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="bundle to write")


def run(arguments: argparse.Namespace) -> int:
    """Write a bundle again with its networks as OpenVINO IR, all else as it is.

    Weights keep their precision. The manifest's ancestry names the bundle that was exported, by name, version and
    SHA-256. Raises UsageError for a bundle that is exported already or has a network without a graph, BundleError for
    one that is damaged.
    """
    source, target = arguments.bundle, arguments.output
    bundle = load_bundle(source)
    # The networks are read from the source while the target is written.
    if os.path.realpath(target) == os.path.realpath(source):
        raise UsageError(f"--output {target}: is the bundle itself, expected another folder")
    stored = sorted(model.name for model in bundle.models if model.format == "openvino")
    if stored:
        raise UsageError(f"--bundle {source}: {', '.join(stored)}: found networks in OpenVINO's format already")
    contents, manifest = contents_of(bundle), bundle.manifest
    with tempfile.TemporaryDirectory() as scratch:
        models = [_exported(model, Path(scratch)) for model in bundle.models]
        provenance = replace(
            manifest.provenance,
            ancestry=(*manifest.provenance.ancestry, f"{manifest.name} {manifest.version} sha256 {bundle.digest}"),
            libraries={**manifest.provenance.libraries, "openvino": version("openvino")},
        )
        write_bundle(target, replace(contents, models=models, provenance=provenance))
    return ExitStatus.OK


def _exported(model: Model, scratch: Path) -> Model:
    """The same model with every network written to `scratch` as a pair of files."""
    from inference.predict.engines.openvino_engine import export_network
    from inference.predict.engines.openvino_graph import UnsupportedGraphError

    networks = {}
    for fold in model.folds:
        networks[fold] = scratch / f"{model.name}_fold_{fold}.xml"
        try:
            export_network(model.architecture, heads_of(model), model.tensors(fold), networks[fold])
        except UnsupportedGraphError as error:
            raise UsageError(f"{model.name}: {error}: it runs on torch alone, and cannot be exported") from error
    return Model(replace(model.entry, format="openvino"), model.plans, networks)
