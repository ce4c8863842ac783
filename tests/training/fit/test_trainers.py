"""The loss, the schedule and the settings that reach nnU-Net's trainer."""

from __future__ import annotations

import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from inference.errors import UsageError
from training.config import ModelConfig
from training.fit import trainers
from training.fit.losses import LabelLoss, RegionLoss, inverse_frequency, labels_of_regions
from training.fit.resident import targets
from training.fit.trainers import (
    CHANCES,
    RegionTrainer,
    WarmupPolynomial,
    set_chances,
)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8, 8), (torch.rand(2, 3, 8, 8, 8) > 0.6).float()


def test_equal_weights_give_nnunets_own_loss(batch):
    theirs = DC_and_BCE_loss(
        {}, {"batch_dice": False, "do_bg": True, "smooth": 1e-5}, dice_class=MemoryEfficientSoftDiceLoss
    )
    assert RegionLoss([1, 1, 1])(*batch).item() == pytest.approx(theirs(*batch).item(), abs=1e-5)


@pytest.fixture
def labels():
    torch.manual_seed(1)
    return torch.randint(0, 4, (2, 8, 8, 8))


def test_equal_weights_of_label_heads_give_nnunets_own_loss(labels):
    logits = torch.randn(2, 4, 8, 8, 8)
    theirs = DC_and_CE_loss(
        {"batch_dice": False, "do_bg": False, "smooth": 1e-5}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    (regions,) = targets(labels, [[1, 1, 1]])
    assert torch.equal(labels_of_regions(regions), labels)
    expected = theirs(logits, labels[:, None].float()).item()
    assert LabelLoss([1, 1, 1])(logits, regions.float()).item() == pytest.approx(expected, abs=1e-5)


def test_a_heavier_label_counts_more(labels):
    (regions,) = targets(labels, [[1, 1, 1]])
    wrong_only_in_et = 20.0 * torch.nn.functional.one_hot(torch.where(labels == 3, 0, labels), 4).permute(0, 4, 1, 2, 3)
    even, heavy = LabelLoss([1, 1, 1]), LabelLoss([1, 1, 10])
    assert heavy(wrong_only_in_et, regions) > even(wrong_only_in_et, regions)


def test_a_heavier_region_counts_more(batch):
    _, target = batch
    wrong_only_in_et = torch.where(target > 0, 20.0, -20.0)
    wrong_only_in_et[:, 2] *= -1
    even, heavy = RegionLoss([1, 1, 1]), RegionLoss([1, 1, 10])
    assert heavy(wrong_only_in_et, target) > even(wrong_only_in_et, target)


def test_the_schedule_is_nnunets_without_warmup():
    ours, theirs = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01) for _ in range(2))
    schedule, reference = WarmupPolynomial(ours, 0.01, 200, 0), PolyLRScheduler(theirs, 0.01, 200)
    for epoch in (0, 1, 57, 199):
        schedule.step(epoch)
        reference.step(epoch)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])


def test_warmup_rises_to_the_base():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = WarmupPolynomial(optimiser, 1.0, 1000, 4)
    rates = []
    for epoch in range(6):
        schedule.step(epoch)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[:5] == sorted(rates[:5])
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] < 1.0


def test_rare_regions_weigh_more():
    weights = inverse_frequency({"WT": 400, "TC": 200, "ET": 100})
    assert weights == pytest.approx([3 / 7, 6 / 7, 12 / 7])
    assert sum(weights) / 3 == pytest.approx(1)


def test_a_region_that_is_nowhere_does_not_divide_by_zero():
    assert inverse_frequency({"WT": 400, "TC": 200, "ET": 0})[2] > 0


def transforms():
    return nnUNetTrainer.get_training_transforms((32, 32, 32), (-0.5, 0.5), None, (0, 1, 2), False)


def test_default_chances_are_nnunets_own():
    plain, ours = transforms(), transforms()
    set_chances(ours, CHANCES["default"])
    assert chances_of(plain) == chances_of(ours)


def test_strong_augmentation_reaches_every_transform():
    plain, strong = transforms(), transforms()
    set_chances(strong, CHANCES["strong"])
    pairs = list(zip(chances_of(plain), chances_of(strong), strict=True))
    assert len(pairs) == 9
    assert all(before < after for before, after in pairs)


def chances_of(composed):
    spatial = composed.transforms[0]
    often = [item.apply_probability for item in composed.transforms if isinstance(item, RandomTransform)]
    return [spatial.p_rotation, spatial.p_scaling, *often]


@pytest.mark.parametrize("has_it", [True, False])
def test_a_processor_without_bfloat16_trains_in_float32(has_it, monkeypatch):
    monkeypatch.setattr(trainers, "processor_has_bfloat16", lambda: has_it)
    trainer = object.__new__(RegionTrainer)
    trainer.model = ModelConfig("nnunet", "PlainConvUNet", {}, precision="bfloat16")
    a = torch.ones(2, 2)
    with trainer._forward(a):
        assert (a @ a).dtype == (torch.bfloat16 if has_it else torch.float32)


def test_flat_patches_are_not_augmented_as_if_they_were_thick(monkeypatch):
    trainer = object.__new__(RegionTrainer)
    trainer.model = ModelConfig("nnunet", "PlainConvUNet", {}, loading="resident")
    trainer.preprocessed_dataset_folder = "unread"
    monkeypatch.setattr(trainers, "infer_dataset_class", lambda _: None)
    monkeypatch.setattr(
        trainer, "configure_rotation_dummyDA_mirroring_and_inital_patch_size", lambda: (None, True, None, None)
    )
    with pytest.raises(UsageError, match=r"nnunet: so flat a patch .* use loading: workers"):
        trainer.get_dataloaders()
