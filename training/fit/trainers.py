"""nnU-Net's trainer with everything that differs between runs taken from the configuration; one class per model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from inference.errors import UsageError
from inference.labels import REGIONS
from inference.predict.networks import build_network
from inference.predict.networks.sizes import LEVELS
from training.config import ModelConfig, StageConfig
from training.fit.losses import LabelLoss, RegionLoss
from training.fit.resident import Chances, ResidentLoader

DECODER = ("decoder.", "up_", "dec_block_", "out_")
"""How names of a decoder's parameters begin, in nnU-Net's networks and in MedNeXt."""
GRADIENT_NORM = 12.0
"""nnU-Net's clipping."""
# Strong is about twice as often as nnU-Net's own, in the same ranges.
CHANCES = {
    "default": Chances(),
    "strong": Chances(
        rotation=0.4,
        scaling=0.4,
        noise=0.3,
        blur=0.35,
        brightness=0.4,
        contrast=0.4,
        low_resolution=0.4,
        inverted_gamma=0.4,
        gamma=0.4,
    ),
}
"""How often each transform happens, by the name of the augmentation."""
# Fields of `Chances` by nnU-Net's transform, for those that happen or not as a whole.
_NAME_OF_CHANCE = {
    GaussianNoiseTransform: "noise",
    GaussianBlurTransform: "blur",
    MultiplicativeBrightnessTransform: "brightness",
    ContrastTransform: "contrast",
    SimulateLowResolutionTransform: "low_resolution",
}


class WarmupPolynomial:
    """Learning rate base·(1 - epoch / epochs)^0.9 (nnU-Net's), after a linear rise where one is asked for."""

    def __init__(self, optimiser: torch.optim.Optimizer, base: float, epochs: int, warmup: int) -> None:
        self.optimiser, self.base, self.epochs, self.warmup = optimiser, base, epochs, warmup

    def step(self, epoch: int) -> None:
        """Set the learning rate of `epoch`, from 0."""
        # Not 0 in the first epoch of the rise, which would learn nothing.
        rate = self.base * min(1.0, (epoch + 1) / (self.warmup + 1)) * (1 - epoch / self.epochs) ** 0.9
        for group in self.optimiser.param_groups:
            group["lr"] = rate


class RegionTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer for WT, TC, ET with settings from a configuration, on a CPU or a GPU."""

    def configure(
        self, model: ModelConfig, stage: StageConfig, region_weights: Sequence[float], shares: Mapping[str, float]
    ) -> None:
        """Take the settings of one model and stage, and how likely patches are cut from each case; before `initialize`.

        Raises UsageError for shares that nnU-Net's own processes cannot take into account.
        """
        self.model, self.stage, self.region_weights, self.shares = model, stage, region_weights, shares
        if model.loading == "workers" and len(set(shares.values())) > 1:
            raise UsageError(f"{model.name}: shares of sources need loading: resident")
        # nnU-Net takes the last third of a batch, of which a batch of one has nothing.
        self.probabilistic_oversampling = model.batch == 1
        self.num_epochs = stage.epochs
        self.num_iterations_per_epoch = stage.iterations
        self.num_val_iterations_per_epoch = stage.validation_iterations
        self.initial_lr = stage.optimiser.learning_rate
        self.weight_decay = stage.optimiser.weight_decay
        # nnU-Net saves every 50 epochs; here a training that is killed loses one at most.
        self.save_every = 1

    def build_network_architecture(  # noqa: D102
        self,
        plans_manager: object,  # noqa: ARG002
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        # The data set's labels are regions; a model of label heads has the background as well.
        outputs = num_output_channels + (self.model.heads == "labels")
        architecture, deep = configuration_manager.configuration["architecture"], enable_deep_supervision
        network: nn.Module = build_network(architecture, num_input_channels, outputs, deep_supervision=deep)
        return network

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolynomial]:  # noqa: D102
        settings = self.stage.optimiser
        parameters = trainable_parameters(self.network, self.stage.trainable)
        optimiser: torch.optim.Optimizer
        if settings.name == "adamw":
            optimiser = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        else:
            optimiser = torch.optim.SGD(
                parameters,
                settings.learning_rate,
                momentum=settings.momentum,
                nesterov=True,
                weight_decay=settings.weight_decay,
            )
        schedule = WarmupPolynomial(optimiser, settings.learning_rate, self.num_epochs, settings.warmup_epochs)
        return optimiser, schedule

    def _build_loss(self) -> nn.Module:
        # Each output counts half of the next finer one; nnU-Net leaves the coarsest out.
        weights = 0.5 ** np.arange(len(self._get_deep_supervision_scales()))
        weights[-1] = 0
        kind = LabelLoss if self.model.heads == "labels" else RegionLoss
        loss: nn.Module = DeepSupervisionWrapper(kind(self.region_weights), weights / weights.sum())
        return loss

    def get_training_transforms(self, *arguments: object, **keywords: object) -> ComposeTransforms:  # noqa: D102
        transforms = nnUNetTrainer.get_training_transforms(*arguments, **keywords)
        set_chances(transforms, CHANCES[self.model.augmentation])
        return transforms

    def do_split(self) -> tuple[list[str], list[str]]:
        """Cases that train and cases that draw the curve; the same where no case is held out (a shared stage)."""
        training, validation = super().do_split()
        return training, validation or training

    def get_dataloaders(self) -> tuple[Iterator[Mapping[str, object]], Iterator[Mapping[str, object]]]:  # noqa: D102
        loaders: tuple[Iterator[Mapping[str, object]], Iterator[Mapping[str, object]]]
        if self.model.loading == "workers":
            loaders = super().get_dataloaders()
            return loaders
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        # nnU-Net augments slice by slice where a patch is more than three times as wide as it is deep.
        _, flat, _, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if flat:
            raise UsageError(f"{self.model.name}: so flat a patch is augmented slice by slice; use loading: workers")
        patch, scales = self.configuration_manager.patch_size, self._get_deep_supervision_scales()
        theirs = []
        for cases in self.get_tr_and_val_datasets():
            shares = np.array([self.shares[case] for case in cases.identifiers])
            # Patches of the final size: the affine sampling needs no margin around them, as nnU-Net's own does.
            loader = nnUNetDataLoader(
                cases,
                self.batch_size,
                patch,
                patch,
                self.label_manager,
                oversample_foreground_percent=self.oversample_foreground_percent,
                sampling_probabilities=shares / shares.sum(),
                probabilistic_oversampling=self.probabilistic_oversampling,
            )
            theirs.append(loader)
        training, validation = theirs
        chances = dataclasses.replace(CHANCES[self.model.augmentation], mixing=self.model.mixing)
        return (
            ResidentLoader(training, scales, self.device, chances, self.configuration_manager.use_mask_for_norm),
            ResidentLoader(validation, scales, self.device),
        )

    def _forward(self, data: Tensor) -> contextlib.AbstractContextManager[object]:
        # float16 is what nnU-Net's loss scaling is for; a CPU has no scaling, and bfloat16 needs none.
        half = torch.float16 if data.device.type == "cuda" else torch.bfloat16
        enabled = data.device.type == "cuda" or (self.model.precision == "bfloat16" and processor_has_bfloat16())
        return torch.autocast(data.device.type, half, enabled=enabled)

    @property
    def _channels_last(self) -> bool:
        # CUDA's norms are slower in that layout.
        return self.model.channels_last and self.device.type == "cpu"

    def on_train_start(self) -> None:  # noqa: D102
        super().on_train_start()
        if self.device.type == "cpu" and self.model.precision == "bfloat16" and not processor_has_bfloat16():
            self.print_to_log_file("This processor has no bfloat16: training in float32, several times slower.")
        if self._channels_last:
            self.network.to(memory_format=torch.channels_last_3d)

    def train_step(self, batch: Mapping[str, object]) -> dict[str, object]:
        """One step; unlike nnU-Net's, a CPU may use bfloat16 and channels last, which is worth three times."""
        data, target = self._to_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self._forward(data):
            output = self.network(data)
        loss = self.loss(output, target)
        if self.grad_scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            # Clipped as they are, not as they were scaled.
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: Mapping[str, object]) -> dict[str, object]:
        """Loss and counts of voxels right and wrong, by region; nnU-Net's own takes outputs for regions."""
        if self.model.heads == "regions":
            step: dict[str, object] = super().validation_step(batch)
            return step
        data, target = self._to_device(batch)
        with self._forward(data):
            output = self.network(data)
        loss = self.loss(output, target)
        labels = output[0].argmax(1)
        truth = target[0] > 0
        found = torch.stack([torch.isin(labels, labels.new_tensor(inside)) for inside in REGIONS.values()], 1)
        sides = {"tp": found & truth, "fp": found & ~truth, "fn": ~found & truth}
        counts = {f"{side}_hard": mask.sum((0, 2, 3, 4)).cpu().numpy() for side, mask in sides.items()}
        return {"loss": loss.detach().cpu().numpy(), **counts}

    def _to_device(self, batch: Mapping[str, object]) -> tuple[Tensor, list[Tensor]]:
        data, target = batch["data"], batch["target"]
        assert isinstance(data, Tensor)
        assert isinstance(target, list)
        data = data.to(self.device, non_blocking=True)
        if self._channels_last:
            data = data.contiguous(memory_format=torch.channels_last_3d)
        return data, [scale.to(self.device, non_blocking=True) for scale in target]

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net does, but whole or not at all, whenever the training is killed."""
        super().save_checkpoint(f"{filename}.partial")
        Path(f"{filename}.partial").replace(filename)

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net draws it with a package that no longer works."""


class NnUNetRegionTrainer(RegionTrainer):
    """Trains the nnU-Net of the ensemble."""


class MedNeXtRegionTrainer(RegionTrainer):
    """Trains the MedNeXt of the ensemble."""

    def _get_deep_supervision_scales(self) -> list[list[float]]:
        # nnU-Net reads them from strides in the plans, which those of a MedNeXt do not have.
        return [[1 / 2**scale] * 3 for scale in range(LEVELS + 1)]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:  # noqa: D102
        self.network.deep_supervision = enabled


def processor_has_bfloat16() -> bool:
    """Whether bfloat16 is worth using on this CPU: where it is emulated, a step takes 40 times that of float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 (torch has no public word for it)


def trainer_class(architecture: str) -> type[RegionTrainer]:
    """The trainer of an architecture."""
    return MedNeXtRegionTrainer if architecture == "MedNeXt" else NnUNetRegionTrainer


def trainable_parameters(network: nn.Module, which: str) -> list[nn.Parameter]:
    """Freeze all of a network but what trains (`all` or the `decoder`), and return that."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(which == "all" or name.startswith(DECODER))
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def set_chances(transforms: ComposeTransforms, chances: Chances) -> None:
    """Make nnU-Net's transforms happen as often as `chances` say; how often axes are mirrored is nnU-Net's matter."""
    for item in transforms.transforms:
        inner = item.transform if isinstance(item, RandomTransform) else item
        if isinstance(inner, SpatialTransform):
            inner.p_rotation, inner.p_scaling = chances.rotation, chances.scaling
        elif isinstance(inner, GammaTransform):
            item.apply_probability = chances.inverted_gamma if inner.p_invert_image else chances.gamma
        elif name := _NAME_OF_CHANCE.get(type(inner)):
            item.apply_probability = getattr(chances, name)
