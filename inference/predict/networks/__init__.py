"""Networks from the architecture section of a plan, by an allow-list: nothing that a plan names is ever imported.

torch is imported when a network is built, so that :func:`network_stride` answers where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import BundleError
from inference.predict.networks.sizes import LEVELS, VARIANTS, MedNeXtSize
from inference.schema import convert

if TYPE_CHECKING:
    from torch import Tensor, nn

_UNETS: Final = ("PlainConvUNet", "ResidualEncoderUNet")
_UNET_PACKAGE: Final = "dynamic_network_architectures.architectures.unet"
_OPERATION_KEYS: Final = ("conv_op", "norm_op", "dropout_op", "nonlin")
# Layers that a plan may name, and the module of `torch.nn.modules` that its long spelling goes through. nnU-Net imports
# whatever a plan names; a plan may come from anywhere, so nothing is looked up that is not in this table.
_OPERATIONS: Final[Mapping[str, str]] = {
    "Conv3d": "conv",
    "InstanceNorm3d": "instancenorm",
    "BatchNorm3d": "batchnorm",
    "Dropout3d": "dropout",
    "LeakyReLU": "activation",
    "ReLU": "activation",
    "GELU": "activation",
}


def architecture_name(architecture: Mapping[str, object]) -> str:
    """The allowed network that a plan's architecture section names: PlainConvUNet, ResidualEncoderUNet or MedNeXt.

    Raises BundleError for any other.
    """
    named = architecture.get("network_class_name")
    for unet in _UNETS:
        if named in (unet, f"{_UNET_PACKAGE}.{unet}"):
            return unet
    if named == "MedNeXt":
        return "MedNeXt"
    raise BundleError(f"architecture {named!r} is not known: expected one of {', '.join((*_UNETS, 'MedNeXt'))}")


def architecture_arguments(architecture: Mapping[str, object]) -> Mapping[str, object]:
    """The `arch_kwargs` of an architecture section. Raises BundleError where there are none."""
    arguments = architecture.get("arch_kwargs")
    if not isinstance(arguments, Mapping):
        raise BundleError(f"architecture arch_kwargs: found {arguments!r}, expected an object")
    return arguments


def shuffle_factor(architecture: Mapping[str, object]) -> int:
    """The factor by which a network's body is on a coarser grid than its input and logits; 1 where it is on the same.

    Raises BundleError for anything but a whole number from 1 to 4.
    """
    factor = architecture.get("shuffle", 1)
    if not isinstance(factor, int) or isinstance(factor, bool) or not 1 <= factor <= 4:
        raise BundleError(f"architecture shuffle: found {factor!r}, expected a whole number from 1 to 4")
    return factor


def network_stride(architecture: Mapping[str, object]) -> tuple[int, int, int]:
    """The numbers that the sizes (Z, Y, X) of a network's input must be multiples of.

    Raises BundleError when the section's strides cannot be read.
    """
    if architecture_name(architecture) == "MedNeXt":
        strides: object = [2] * LEVELS
    else:
        strides = architecture_arguments(architecture).get("strides")
    try:
        rows = np.asarray(strides, dtype=np.int64)
        # nnU-Net's architectures take a number for the same stride along all axes.
        if rows.ndim == 1:
            rows = np.repeat(rows[:, None], 3, axis=1)
        z, y, x = (shuffle_factor(architecture) * int(product) for product in rows.prod(axis=0))
    except (TypeError, ValueError) as error:
        raise BundleError(f"architecture strides {strides!r}: expected three numbers per stage") from error
    return z, y, x


def mednext_size(architecture: Mapping[str, object]) -> tuple[MedNeXtSize, int]:
    """Size and kernel of the MedNeXt that an architecture section describes.

    Raises BundleError for arguments other than those of :func:`build_network`.
    """
    arguments = dict(architecture_arguments(architecture))
    kernel_size = arguments.pop("kernel_size", 3)
    if not isinstance(kernel_size, int) or kernel_size not in (3, 5):
        raise BundleError(f"architecture MedNeXt kernel_size: found {kernel_size!r}, expected 3 or 5")
    if set(arguments) != {"variant"}:
        return convert(arguments, MedNeXtSize, BundleError, "architecture MedNeXt"), kernel_size
    size = VARIANTS.get(str(arguments["variant"]))
    if size is None:
        raise BundleError(
            f"architecture MedNeXt variant: found {arguments['variant']!r}, expected {', '.join(VARIANTS)}"
        )
    return size, kernel_size


def build_network(
    architecture: Mapping[str, object], in_channels: int, out_channels: int, deep_supervision: bool = False
) -> nn.Module:
    """The network that a plan's architecture section describes, freshly initialised unless it is made on `meta`.

    `architecture` is nnU-Net's section as its planner wrote it (`network_class_name`, `arch_kwargs`,
    `_kw_requires_import`), or `MedNeXt` with `arch_kwargs` {"variant": "S" | "B" | "M" | "L"} or {"channels", "blocks",
    "expansion"}, and optionally "kernel_size". The network takes (batch, in_channels, Z, Y, X) and returns logits
    (batch, out_channels, Z, Y, X), or with deep supervision a list of them from full resolution downwards. With
    `shuffle` beside them, blocks of so many voxels a side become channels before the network and voxels again after it
    (:func:`on_coarser_grid`).

    Raises BundleError for a network, layer or argument that is not on the allow-list.
    """
    name, factor = architecture_name(architecture), shuffle_factor(architecture)
    inputs, outputs = in_channels * factor**3, out_channels * factor**3
    try:
        if name == "MedNeXt":
            from inference.predict.networks.mednext import MedNeXt

            network: nn.Module = MedNeXt(*mednext_size(architecture), inputs, outputs, deep_supervision)
        else:
            network = _build_unet(name, architecture, inputs, outputs, deep_supervision)
    except (AssertionError, IndexError, TypeError, ValueError) as error:
        raise BundleError(f"architecture {name} cannot be built from its arguments: {error}") from error
    return on_coarser_grid(network, factor) if factor > 1 else network


def on_coarser_grid(network: nn.Module, factor: int) -> nn.Module:
    """Let a network work on a grid `factor` times coarser than that of its input and logits; returns `network`.

    Before it, every block of factor³ voxels becomes channels; after it, every factor³ channels become voxels: pixel
    shuffle (Shi et al., CVPR 2016, DOI 10.1109/CVPR.2016.207) in three dimensions. So a body at 2 mm sees and labels
    voxels of 1 mm at an eighth of the cost.
    """
    # Hooks, because a module around the network would change the names of its tensors.
    network.register_forward_pre_hook(lambda _, inputs: (voxels_to_channels(inputs[0], factor),))
    network.register_forward_hook(
        lambda _, __, output: (
            [channels_to_voxels(scale, factor) for scale in output]
            if isinstance(output, list)
            else channels_to_voxels(output, factor)
        )
    )
    return network


def voxels_to_channels(x: Tensor, factor: int) -> Tensor:
    """(B, C, Z, Y, X) to (B, C·f³, Z/f, Y/f, X/f); a channel's f³ parts follow each other, X fastest."""
    batch, channels, z, y, x_size = x.shape
    blocks = x.reshape(batch, channels, z // factor, factor, y // factor, factor, x_size // factor, factor)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def channels_to_voxels(x: Tensor, factor: int) -> Tensor:
    """(B, C·f³, Z, Y, X) to (B, C, f·Z, f·Y, f·X), the inverse of :func:`voxels_to_channels`."""
    batch, channels, *size = x.shape
    parts = x.reshape(batch, channels // factor**3, factor, factor, factor, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def deployed_weights(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """The tensors of a checkpoint's `state` that `network` needs, each once, as float32 arrays.

    :func:`load_weights` expects exactly what this returns. Raises BundleError for a tensor that the checkpoint lacks.
    """
    # Left out are second names, which nnU-Net's networks have for their encoder and convolutions, and the heads of deep
    # supervision, which a deployed network has not.
    missing = [name for name in _tensors(network) if name not in state]
    if missing:
        raise BundleError(f"checkpoint lacks the tensors {_some(missing)}")
    return {name: state[name].detach().cpu().float().numpy() for name in _tensors(network)}


def load_weights(network: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Put `weights` into `network`, strictly: every tensor of the network once, in its shape, finite, and no other.

    A network made under `torch.device("meta")` becomes real by this. Raises BundleError naming the tensors that are
    missing, unexpected, misshapen or not finite.
    """
    import torch
    from torch import nn

    expected = _tensors(network)
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected:
        found = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
        raise BundleError(f"tensors do not fit the network: {'; '.join(found)}")
    for name, current in expected.items():
        array = np.asarray(weights[name])
        if tuple(array.shape) != tuple(current.shape):
            raise BundleError(f"tensor {name}: found shape {array.shape}, expected {tuple(current.shape)}")
        if not np.isfinite(array).all():
            raise BundleError(f"tensor {name}: found values that are not finite")
        # Copied: what a file gives is read-only, and torch warns of that.
        tensor = torch.from_numpy(np.array(array)).to(current.dtype)
        parent, _, leaf = name.rpartition(".")
        is_parameter = isinstance(current, nn.Parameter)
        setattr(network.get_submodule(parent), leaf, nn.Parameter(tensor) if is_parameter else tensor)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a network, each under the first of its names."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _operation(name: object) -> type[nn.Module] | None:
    """The layer class that a plan names, in the short (`torch.nn.ReLU`) or the long spelling."""
    from torch import nn

    if name is None:
        return None
    short = str(name).rpartition(".")[2]
    module = _OPERATIONS.get(short)
    if module is None or name not in (f"torch.nn.{short}", f"torch.nn.modules.{module}.{short}"):
        raise BundleError(f"architecture layer {name!r} is not known: expected torch.nn.{' | '.join(_OPERATIONS)}")
    operation: type[nn.Module] = getattr(nn, short)
    return operation


def _build_unet(
    name: str, architecture: Mapping[str, object], in_channels: int, out_channels: int, deep_supervision: bool
) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    named = architecture.get("_kw_requires_import", ())
    if not isinstance(named, (list, tuple)) or not set(named) <= set(_OPERATION_KEYS):
        raise BundleError(f"architecture _kw_requires_import: found {named!r}, expected some of {_OPERATION_KEYS}")
    arguments = dict(architecture_arguments(architecture))
    arguments.update({key: _operation(arguments[key]) for key in _OPERATION_KEYS if key in arguments})
    arguments.update(input_channels=in_channels, num_classes=out_channels, deep_supervision=deep_supervision)
    unet = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}[name]
    network: nn.Module = unet(**arguments)
    # As nnU-Net does after building one; without it, training starts from PyTorch's own initialisation. Where there is
    # nothing to initialise, it would load torch's compiler, which takes a second and asks the system who the user is.
    if not next(network.parameters()).is_meta:
        network.apply(unet.initialize)
    return network
