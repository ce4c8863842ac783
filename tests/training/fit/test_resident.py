"""Patches that are cut out and augmented on the device, against nnU-Net's transforms and SciPy."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from scipy import ndimage

from inference.errors import UsageError
from training.fit import resident
from training.fit.resident import Chances, ResidentCase, ResidentLoader, augment, draw_matrix, mix, sample, targets

NEVER = Chances(**{field.name: 0.0 for field in dataclasses.fields(Chances)})
ALWAYS = Chances(**{field.name: 1.0 for field in dataclasses.fields(Chances)})


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 20, 24, 18, generator=generator)
    labels = torch.full((20, 24, 18), -1, dtype=torch.int8)
    labels[1:-1, 2:-2, 1:-1] = 0
    labels[4:14, 6:16, 5:15], labels[6:12, 8:14, 7:13], labels[8:10, 9:12, 8:12] = 2, 1, 3
    return ResidentCase(image, labels, {})


@pytest.fixture
def images():
    return torch.randn(5, 16, 20, 12, generator=torch.Generator().manual_seed(2))


def test_a_patch_is_the_piece_of_the_case_around_its_centre(case):
    image, labels = sample(case, np.array([9.5, 11.5, 8.5]), np.eye(3), (8, 10, 6))
    assert torch.allclose(image, case.image[:, 6:14, 7:17, 6:12], atol=1e-4)
    assert torch.equal(labels, case.labels[6:14, 7:17, 6:12])


@pytest.mark.parametrize("mirrored", [(1, 1, 1), (-1, 1, -1)])
def test_a_block_of_voxels_is_cut_out_as_it_would_be_sampled(case, mirrored):
    centre, size, matrix = np.array([2.5, 20.5, 8.5]), (8, 10, 20), np.diag(mirrored).astype(float)
    block, labels = sample(case, centre, matrix, size)
    # A hair beside the voxels nothing can be cut out.
    sampled, expected = sample(case, centre + 1e-9, matrix, size)
    assert torch.allclose(block, sampled, atol=1e-4)
    assert torch.equal(labels, expected)


def test_what_lies_outside_of_the_case_is_zero(case):
    image, labels = sample(case, np.array([0.5, 0.5, 0.5]), np.eye(3), (8, 10, 6))
    assert torch.allclose(image[:, 3:, 4:, 2:], case.image[:, :5, :6, :4], atol=1e-4)
    assert image[:, :3].abs().max() < 1e-5
    assert labels[:3].max() == -1


def test_a_patch_is_turned_and_mirrored_as_its_matrix_says(case):
    matrix = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    centre = np.array([9.5, 11.5, 8.5])
    image, labels = sample(case, centre, matrix, (8, 8, 6))
    piece = slice(6, 14), slice(8, 16), slice(6, 12)
    # A step along the first axis of the patch is one along the second of the case, backwards along the third.
    turned = case.image[(slice(None), *piece)].transpose(1, 2).flip(2, 3)
    assert torch.allclose(image, turned, atol=1e-4)
    assert torch.equal(labels, case.labels[piece].transpose(0, 1).flip(1, 2))


def test_any_matrix_samples_where_scipy_does(case):
    np.random.seed(3)  # noqa: NPY002
    matrix = draw_matrix(dataclasses.replace(NEVER, rotation=1.0, scaling=1.0, mirroring=0.5))
    size, centre = (8, 10, 6), np.array([10.2, 12.1, 8.7])
    image, _ = sample(case, centre, matrix, size)
    offset = centre - matrix @ ((np.array(size) - 1) / 2)
    expected = ndimage.affine_transform(case.image[0].numpy(), matrix, offset, size, order=1, mode="grid-constant")
    assert np.allclose(image[0], expected, atol=1e-3)


def test_drawn_matrices_turn_up_to_thirty_degrees_and_scale_all_axes_alike():
    np.random.seed(4)  # noqa: NPY002
    assert np.array_equal(draw_matrix(NEVER), np.eye(3))
    for _ in range(50):
        turn = draw_matrix(dataclasses.replace(NEVER, rotation=1.0))
        assert np.allclose(turn @ turn.T, np.eye(3))
        assert np.linalg.det(turn) == pytest.approx(1)
        scaled = draw_matrix(dataclasses.replace(NEVER, scaling=1.0))
        assert np.allclose(scaled, scaled[0, 0] * np.eye(3))
        assert 0.7 <= scaled[0, 0] <= 1.4
    assert np.array_equal(draw_matrix(dataclasses.replace(NEVER, mirroring=1.0)), -np.eye(3))


def test_targets_are_nnunets_regions_at_every_scale(case):
    scales = [[1.0] * 3, [0.5] * 3, [0.25, 0.5, 0.5]]
    regions = ConvertSegmentationToRegionsTransform([(1, 2, 3), (1, 3), (3,)])(segmentation=case.labels[None].short())
    expected = DownsampleSegForDSTransform(scales)(**regions)["segmentation"]
    found = targets(case.labels[None], scales)
    assert [scale.dtype for scale in found] == [torch.bool] * 3
    assert all(torch.equal(ours[0], theirs) for ours, theirs in zip(found, expected, strict=True))
    assert found[0].any()


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.25])
def test_contrast_is_nnunets(images, factor):
    theirs = ContrastTransform(lambda **_: factor, preserve_range=True, synchronize_channels=False)
    expected = theirs(image=images.clone())["image"]
    assert torch.allclose(resident.contrast(images, torch.full((5,), factor)), expected, atol=1e-5)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("inverted", [0, 1])
def test_gamma_is_nnunets(images, exponent, inverted):
    theirs = GammaTransform(
        lambda **_: exponent, inverted, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )
    expected = theirs(image=images.clone())["image"]
    sign = -1 if inverted else 1
    found = sign * resident.gamma(sign * images, torch.full((5,), exponent))
    assert torch.allclose(found, expected, atol=1e-5)


def test_coarsening_is_nnunets(images):
    theirs = SimulateLowResolutionTransform(0.6, synchronize_channels=False, synchronize_axes=True, ignore_axes=None)
    expected = theirs(image=images.clone())["image"]
    found = torch.stack([resident.coarsen(image, 0.6) for image in images])
    assert torch.allclose(found, expected, atol=1e-6)


def test_blurring_is_scipys(images):
    deviations = torch.tensor([[0.5, 0.7, 1.0]] * 5)
    found = resident.blur(images, deviations)
    for image, blurred in zip(images.numpy(), found, strict=True):
        expected = ndimage.gaussian_filter(image, (0.5, 0.7, 1.0), mode="mirror", radius=resident.BLUR_RADIUS)
        assert np.allclose(blurred, expected, atol=1e-5)


def test_factors_are_as_often_below_one_as_above():
    torch.manual_seed(5)
    factors = resident.draw_factor(0.7, 1.5, (4000,))
    assert 0.7 <= factors.min() < 0.71
    assert 1.49 < factors.max() <= 1.5
    assert (factors < 1).float().mean() == pytest.approx(0.5, abs=0.03)


def brain(shape, tumour, brightness):
    """A case of one value everywhere, with a tumour of label 2 that is ten brighter."""
    labels = torch.zeros(shape, dtype=torch.int8)
    labels[0], labels[tumour] = -1, 2
    image = torch.full((4, *shape), float(brightness))
    image[:, labels == 2] += 10
    return ResidentCase(image, labels, {})


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_tumour_is_mixed_into_another_brain_at_its_place_as_bright_as_what_is_around_it(monkeypatch, mirrored):
    monkeypatch.setattr(resident, "_happens", lambda _: mirrored)
    case = brain((20, 24, 18), np.s_[3:5, 4:6, 4:6], 1)
    donor = brain((24, 20, 18), np.s_[14:16, 10:12, 12:14], 5)
    before = case.image.clone(), case.labels.clone()
    mixed = mix(case, donor)
    place = np.s_[12:14, 12:14, 4:6] if mirrored else np.s_[12:14, 12:14, 12:14]
    expected = case.labels.clone()
    expected[place] = 2
    assert torch.equal(mixed.labels, expected)
    assert torch.allclose(mixed.image, torch.where(expected == 2, 11.0, 1.0), atol=1e-4)
    assert mixed.locations is case.locations
    assert torch.equal(case.image, before[0])
    assert torch.equal(case.labels, before[1])


def test_what_would_lie_outside_of_the_brain_is_not_mixed_in():
    case = brain((20, 24, 18), np.s_[10:12, 10:12, 8:10], 1)
    donor = brain((20, 24, 18), np.s_[1:4, 10:12, 8:10], 5)
    case.labels[:3] = -1
    mixed = mix(case, donor)
    assert (mixed.labels[:3] == -1).all()
    assert (mixed.labels[3, 10:12, 8:10] == 2).all()


def test_a_case_without_tumour_gives_nothing(case):
    donor = ResidentCase(case.image + 1, case.labels.clamp(max=0), {})
    mixed = mix(case, donor)
    assert torch.equal(mixed.image, case.image)
    assert torch.equal(mixed.labels, case.labels)


def test_without_chances_nothing_changes(images):
    batch = images[None, :4]
    assert torch.equal(augment(batch, NEVER), batch)


@pytest.mark.parametrize(
    "name", ["noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma"]
)
def test_every_chance_counts_for_its_share_of_patches(name, images):
    torch.manual_seed(6)
    batch = images[None, :4].repeat(60, 1, 1, 1, 1)
    changed = (augment(batch, dataclasses.replace(NEVER, **{name: 0.3})) != batch).flatten(2).any(2)
    assert changed.any(1).float().mean() == pytest.approx(0.3, abs=0.15)
    shares = changed[changed.any(1)].float().mean()
    assert shares == pytest.approx(0.5 if name in ("blur", "low_resolution") else 1.0, abs=0.2)


def test_everything_at_once_stays_finite(images):
    torch.manual_seed(7)
    batch = torch.cat([images[None, :4], torch.zeros(1, 4, 16, 20, 12)])
    assert torch.isfinite(augment(batch, ALWAYS)).all()


def fake_loader(batch: int, forced: float):
    """What nnU-Net's loader does for ours, on one case whose labels mark voxels by themselves."""
    image = np.random.default_rng(0).normal(size=(4, 20, 24, 18)).astype(np.float32)
    labels = np.full((1, 20, 24, 18), -1, np.int16)
    labels[0, 4:14, 6:16, 5:15] = 2
    calls: list[bool] = []

    def get_bbox(shape, force, locations):
        calls.append(force)
        assert shape == (20, 24, 18)
        assert locations == {(1, 2, 3): "voxels"}
        return [6, 7, 6], [14, 17, 12]

    data = SimpleNamespace(load_case=lambda _: (image, labels, None, {"class_locations": {(1, 2, 3): "voxels"}}))
    loader = SimpleNamespace(
        _data=data,
        indices=["a"],
        get_indices=lambda: ["a"] * batch,
        get_do_oversample=lambda number: number >= round(batch * (1 - forced)),
        get_bbox=get_bbox,
        final_patch_size=(8, 10, 6),
    )
    return loader, image, labels, calls


def test_batches_are_shaped_as_the_trainer_expects_them():
    loader, image, labels, calls = fake_loader(batch=2, forced=0.33)
    batch = next(ResidentLoader(loader, [[1.0] * 3, [0.5] * 3], torch.device("cpu")))
    assert batch["keys"] == ["a", "a"]
    assert calls == [False, True]
    assert batch["data"].shape == (2, 4, 8, 10, 6)
    assert torch.allclose(batch["data"][0], torch.from_numpy(image[:, 6:14, 7:17, 6:12]), atol=1e-4)
    assert [tuple(scale.shape) for scale in batch["target"]] == [(2, 3, 8, 10, 6), (2, 3, 4, 5, 3)]
    whole = torch.from_numpy(labels[0, 6:14, 7:17, 6:12] == 2)
    assert torch.equal(batch["target"][0][0, 0], whole)
    assert not batch["target"][0][:, 1:].any()


def test_cases_that_do_not_fit_are_told_so(monkeypatch):
    class FullTensor:
        def to(self, _device):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "from_numpy", lambda _: FullTensor())
    with pytest.raises(UsageError, match="cpu has no room after 0 cases; use loading: workers"):
        ResidentLoader(fake_loader(2, 0.33)[0], [[1.0] * 3], torch.device("cpu"))


def test_masked_sequences_are_zero_outside_of_the_brain_as_nnunet_makes_them():
    def first(masked):
        np.random.seed(9)  # noqa: NPY002
        torch.manual_seed(9)
        loader = ResidentLoader(fake_loader(1, 0.0)[0], [[1.0] * 3], torch.device("cpu"), chances, masked)
        return next(loader)["data"][0]

    chances = dataclasses.replace(NEVER, noise=1.0)
    unmasked = first([])
    outside = torch.from_numpy(fake_loader(1, 0.0)[2][:, 6:14, 7:17, 6:12])
    theirs = MaskImageTransform([0, 1, 3])(image=unmasked.clone(), segmentation=outside)["image"]
    assert not torch.equal(theirs, unmasked)
    assert torch.equal(first([True, True, False, True]), theirs)


def test_the_same_seed_gives_the_same_batches():
    def batches():
        np.random.seed(8)  # noqa: NPY002
        torch.manual_seed(8)
        loader = ResidentLoader(fake_loader(2, 0.33)[0], [[1.0] * 3], torch.device("cpu"), ALWAYS)
        return [next(loader)["data"] for _ in range(2)]

    first, second = batches(), batches()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
