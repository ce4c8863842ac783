"""Checkpoints from outside: read without running what they hold, and checked against the network that they claim."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from inference.bundle.tables import FloatArray
from inference.errors import UsageError
from inference.labels import SEQUENCES
from inference.predict.networks import architecture_name, build_network
from inference.predict.networks.sizes import LEVELS, VARIANTS, MedNeXtSize

if TYPE_CHECKING:
    from torch import Tensor

# Where nnU-Net v2 and v1 keep a network's weights.
_WEIGHTS: Final = ("network_weights", "state_dict")
# A parameter of the reference's MedNeXt that no layer uses: torch's checkpointing wants an input that has a gradient.
_NO_WEIGHT: Final = "dummy_tensor"
# 8-bit floats would need scales that nothing here knows of.
_KINDS: Final = ("float16", "bfloat16", "float32", "float64")
# What torch raises for files that are none of its own.
_DAMAGED: Final = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError,
    AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint file, read."""

    path: Path
    """Its file."""
    contents: Mapping[str, object]
    """Plain values and tensors."""
    tensors: Mapping[str, Tensor]
    """The network's weights by state-dict name."""


def read_plainly(path: Path) -> object:
    """Contents of a file of torch's, by its restricted reader: nothing but numbers, texts, tensors and containers.

    Tensors stay on the disk until they are used, where torch can do that. Raises UsageError for a file that holds
    anything else, or none of torch's.
    """
    import torch
    from numpy._core.multiarray import scalar

    # What numpy's numbers are pickled by, under the old name as well: nnU-Net's checkpoints log with them.
    numbers = [type(np.dtype(kind)) for kind in "efdbhilqBHILQ?"]
    try:
        with torch.serialization.safe_globals([np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *numbers]):
            # Files of before torch 1.6 are no zips, and are read at once.
            zipped = zipfile.is_zipfile(path)
            contents: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = named[1] if named else "what torch's restricted reader does not read"
        raise UsageError(f"{path}: found {found} in it, expected numbers and texts only: refused") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _DAMAGED as error:
        raise UsageError(f"{path}: found no checkpoint of torch in it (damaged, or another kind of file)") from error
    return contents


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of nnU-Net v2 or v1.

    Raises UsageError as :func:`read_plainly` does, and for one without a network's weights.
    """
    import torch

    found = read_plainly(path)
    contents = found if isinstance(found, dict) else {}
    weights = next((contents[key] for key in _WEIGHTS if key in contents), None)
    if not isinstance(weights, Mapping):
        raise UsageError(f"{path}: found neither {' nor '.join(_WEIGHTS)}, expected a checkpoint of nnU-Net")
    # Trained on several GPUs, a network is a part of DistributedDataParallel.
    prefix = "module." if weights and all(str(name).startswith("module.") for name in weights) else ""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{path}: {name}: found {type(tensor).__name__}, expected a tensor")
        tensors[str(name).removeprefix(prefix)] = tensor
    return Checkpoint(path, contents, tensors)


def deployed_tensors(
    checkpoint: Checkpoint, architecture: Mapping[str, object], outputs: Sequence[int]
) -> dict[str, FloatArray]:
    """The tensors that a deployed network needs, each once, as float32, from a checkpoint that holds just its network.

    Raises UsageError naming the tensors that are missing or superfluous, or one that is misshapen or not finite.
    """
    import torch

    from inference.predict.networks import deployed_weights

    # Names and shapes are enough. The heads of deep supervision are in checkpoints, and not deployed.
    with torch.device("meta"):
        deployed = build_network(architecture, len(SEQUENCES), len(outputs))
        trained = build_network(architecture, len(SEQUENCES), len(outputs), deep_supervision=True).state_dict()
    given = dict(checkpoint.tensors)
    if architecture_name(architecture) == "MedNeXt":
        given.pop(_NO_WEIGHT, None)
    missing = sorted(set(deployed.state_dict()) - set(given))
    superfluous = sorted(set(given) - set(trained))
    if missing or superfluous:
        parts = [f"missing {few(missing)}"] * bool(missing) + [f"superfluous {few(superfluous)}"] * bool(superfluous)
        raise UsageError(f"{checkpoint.path}: its tensors are not those of the network: {'; '.join(parts)}")
    for name, tensor in given.items():
        if tensor.shape != trained[name].shape:
            found, expected = tuple(tensor.shape), tuple(trained[name].shape)
            raise UsageError(f"{checkpoint.path}: {name}: found shape {found}, expected {expected}")
        _check_numbers(tensor, f"{checkpoint.path}: {name}")
    return dict(deployed_weights(deployed, given))


def _check_numbers(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that is no plain array of numbers which stay finite in float32."""
    import torch

    # All of these pass torch's restricted reader.
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided:
        kind = "sparse"
    elif tensor.is_meta or tensor.is_quantized:
        kind = "meta, without numbers," if tensor.is_meta else "quantised"
    # Batch norm's count of batches is the one whole number in a network's weights.
    if kind not in _KINDS and not (kind == "int64" and name.endswith("num_batches_tracked")):
        raise UsageError(f"{name}: found a tensor that is {kind}, expected one of {', '.join(_KINDS)}")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise UsageError(f"{name}: found values that are not finite, or not in float32")


def mednext_architecture(checkpoint: Checkpoint) -> dict[str, object]:
    """The architecture section of a MedNeXt v1's plans, from the names and shapes of its tensors.

    Raises UsageError where they are not those of a MedNeXt.
    """

    def shape(name: str) -> tuple[int, ...]:
        tensor = checkpoint.tensors.get(name)
        if tensor is None or tensor.ndim != 5 or 0 in tensor.shape:
            found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise UsageError(f"{checkpoint.path}: {name}: found {found}, expected a tensor of a MedNeXt v1")
        return tuple(tensor.shape)

    blocks, expansion = [], []
    stages = [f"enc_block_{level}" for level in range(LEVELS)] + ["bottleneck"]
    for stage in stages + [f"dec_block_{level}" for level in reversed(range(LEVELS))]:
        numbers = (re.match(rf"{stage}\.(\d{{1,3}})\.", name) for name in checkpoint.tensors)
        blocks.append(1 + max((int(number[1]) for number in numbers if number), default=0))
        # The second convolution of a block widens its channels, the third narrows them again.
        wide, narrow, *_ = shape(f"{stage}.0.conv2.weight")
        expansion.append(wide // narrow)
    size = MedNeXtSize(shape("stem.weight")[0], tuple(blocks), tuple(expansion))
    letter = next((letter for letter, variant in VARIANTS.items() if variant == size), None)
    sizes = {"channels": size.channels, "blocks": blocks, "expansion": expansion}
    arguments: dict[str, object] = {"variant": letter} if letter else dict(sizes)
    kernel = shape("enc_block_0.0.conv1.weight")[-1]
    return {
        "network_class_name": "MedNeXt",
        "_kw_requires_import": list[str](),
        "arch_kwargs": {**arguments, "kernel_size": kernel},
    }


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many there are more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
