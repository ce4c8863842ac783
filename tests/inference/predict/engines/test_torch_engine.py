"""PyTorch behind the engine's interface."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from inference.bundle.store import Model
from inference.errors import BundleError, DeviceError, UsageError
from inference.labels import regions_from_label_probabilities
from inference.predict.engines.torch_engine import TorchEngine, check_device
from inference.predict.preprocess import preprocess, read_plan
from inference.settings import Profile
from tests.inference.predict.conftest import (
    LINEAR,
    SPLINES,
    make_plans,
    make_scan,
    mednext_architecture,
    unet_architecture,
)

MILLIMETRE = (1.0, 1.0, 1.0)


def nothing() -> None:
    """Progress that nobody looks at."""


def forward(model: Model, fold: int, array: np.ndarray) -> torch.Tensor:
    from inference.predict.networks import build_network, load_weights

    network = build_network(model.architecture, 4, 3 if model.heads == "regions" else 4).eval()
    load_weights(network, model.tensors(fold))
    with torch.no_grad():
        return network(torch.from_numpy(array)[None])[0]


@pytest.mark.parametrize("architecture", [unet_architecture(), mednext_architecture()], ids=["U-Net", "MedNeXt"])
@pytest.mark.parametrize("heads", ["regions", "labels"])
@pytest.mark.parametrize("resampling", [None, SPLINES], ids=["linear", "splines"])
def test_fast_is_one_padded_pass_averaged_on_the_networks_grid(
    architecture: dict[str, object], heads: str, resampling: dict[str, object] | None, make_model: Callable
) -> None:
    changes = {"resampling": resampling} if resampling else {}
    model = make_model(make_plans(architecture, spacing=(1.4, 1.4, 1.4), **changes), heads=heads)
    prepared = preprocess(make_scan((44, 52, 36)), MILLIMETRE, read_plan(model.plans))
    seen: list[np.ndarray] = []
    found = TorchEngine("cpu").mean_over_folds(
        model, prepared, Profile.FAST, nothing, lambda array: seen.append(array.copy())
    )
    pads = [(0, 0)]
    for size in prepared.array.shape[1:]:
        missing = -size % (16 if architecture["network_class_name"] == "MedNeXt" else 8)
        pads.append((missing // 2, missing - missing // 2))
    padded = np.pad(prepared.array, pads)
    inside = tuple(slice(before, before + size) for (before, _), size in zip(pads, prepared.array.shape, strict=True))
    folds = []
    for fold in model.folds:
        logits = forward(model, fold, padded)[:, *inside[1:]]
        if heads == "regions":
            folds.append(torch.sigmoid(logits).numpy())
        else:
            folds.append(regions_from_label_probabilities(torch.softmax(logits, 0).numpy()))
    assert np.abs(found - prepared.to_crop_grid(np.mean(folds, axis=0))).max() < 1e-5
    for network, fold in zip(seen, folds, strict=True):
        assert np.abs(network - prepared.to_crop_grid(fold)).max() < 1e-5


def test_a_batch_that_does_not_fit_is_halved(make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture(), patch=(16, 16, 16)), folds=1)
    prepared = preprocess(make_scan((28, 26, 30)), MILLIMETRE, read_plan(model.plans))
    expected = TorchEngine("cpu").mean_over_folds(model, prepared, Profile.PAPER, nothing)
    engine = TorchEngine("cpu")
    engine._batch = 8
    network = engine._network(model, 0)
    sizes: list[int] = []

    def short_of_memory(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError

    network.register_forward_pre_hook(short_of_memory)
    found = engine.mean_over_folds(model, prepared, Profile.PAPER, nothing)
    assert sizes[:2] == [8, 4]
    assert set(sizes[2:]) == {2}, "what did not fit is not tried again"
    assert sum(sizes[2:]) == 8 * 8, "eight mirrorings of eight tiles, each once"
    assert np.abs(found - expected).max() < 1e-5


def test_one_pass_that_does_not_fit_is_a_named_error(make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    prepared = preprocess(make_scan((20, 20, 20)), MILLIMETRE, read_plan(model.plans))
    engine = TorchEngine("cpu")

    def short_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    engine._network(model, 0).register_forward_pre_hook(short_of_memory)
    with pytest.raises(DeviceError, match="not enough memory"):
        engine.mean_over_folds(model, prepared, Profile.FAST, nothing)


NO_ENGINE = "GET was unable to find an engine to execute this computation"


def test_a_convolution_without_room_for_its_workspace_is_halved_too(make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture(), patch=(16, 16, 16)), folds=1)
    prepared = preprocess(make_scan((20, 20, 20)), MILLIMETRE, read_plan(model.plans))
    engine = TorchEngine("cpu")
    engine._batch = 8
    fits = 1

    def no_engine(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > fits:
            raise RuntimeError(NO_ENGINE)

    engine._network(model, 0).register_forward_pre_hook(no_engine)
    engine.mean_over_folds(model, prepared, Profile.PAPER, nothing)
    assert engine._batch == 1
    fits = 0
    with pytest.raises(RuntimeError, match=NO_ENGINE):
        engine.mean_over_folds(model, prepared, Profile.PAPER, nothing)


def test_other_errors_are_not_taken_for_a_shortage(make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    engine = TorchEngine("cpu")
    engine._batch = 8
    with pytest.raises(RuntimeError, match="expected input"):
        engine._forward(engine._network(model, 0), torch.zeros(8, 3, 16, 16, 16))
    assert engine._batch == 8


def hold_at_most(room: int, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the engine's device, which is the CPU, hold only so many networks; how many it held after every arrival."""
    there: set[torch.nn.Module] = set()
    counts: list[int] = []

    def to(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        if device is engine._device:
            if len(there | {network}) > room:
                raise torch.OutOfMemoryError
            there.add(network)
            counts.append(len(there))
        else:
            there.discard(network)
        return network

    monkeypatch.setattr(torch.nn.Module, "to", to)
    return counts


@pytest.mark.parametrize("profile", list(Profile))
def test_networks_that_do_not_fit_together_come_one_at_a_time(
    profile: Profile, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [make_model(make_plans(unet_architecture()), folds=2) for _ in range(2)]
    prepared = preprocess(make_scan((20, 20, 20)), MILLIMETRE, read_plan(models[0].plans))
    expected = TorchEngine("cpu").mean_over_folds(models[0], prepared, profile, nothing)
    engine = TorchEngine("cpu")
    counts = hold_at_most(3, engine, monkeypatch)
    for model in models:
        engine.load(model)
    assert counts == [1, 2, 3, 1]
    for model in models:
        np.testing.assert_array_equal(engine.mean_over_folds(model, prepared, profile, nothing), expected)
    assert counts[4:] == [1, 1, 1, 1]


def test_a_network_that_does_not_fit_alone_is_a_named_error(
    make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine("cpu")
    hold_at_most(0, engine, monkeypatch)
    with pytest.raises(DeviceError, match="not enough memory for one network"):
        engine.load(make_model(make_plans(unet_architecture())))


def test_networks_make_room_for_a_single_pass(make_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(make_plans(unet_architecture()), folds=3)
    prepared = preprocess(make_scan((20, 20, 20)), MILLIMETRE, read_plan(model.plans))
    engine = TorchEngine("cpu")
    expected = engine.mean_over_folds(model, prepared, Profile.FAST, nothing)
    counts = hold_at_most(3, engine, monkeypatch)
    passes: list[int] = []

    def short_of_memory(*_: object) -> None:
        passes.append(len(engine._placed))
        if len(engine._placed) > 1:
            raise torch.OutOfMemoryError

    for fold in model.folds:
        engine._network(model, fold).register_forward_pre_hook(short_of_memory)
    found = engine.mean_over_folds(model, prepared, Profile.FAST, nothing)
    np.testing.assert_array_equal(found, expected)
    assert passes == [3, 1, 1, 1]
    assert counts == [1, 1], "the first was there, the others came in its place"


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("resampling", [LINEAR, SPLINES], ids=["linear", "splines"])
def test_nothing_comes_to_the_host_before_the_mean_over_folds(
    profile: Profile, resampling: dict[str, object], make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_plans(unet_architecture(), spacing=(1.4, 1.4, 1.4), resampling=resampling), folds=3)
    prepared = preprocess(make_scan((28, 26, 24)), MILLIMETRE, read_plan(model.plans))
    engine = TorchEngine("cpu")
    engine.load(model)
    copies = 0
    to_host = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal copies
        copies += 1
        return to_host(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    found = engine.mean_over_folds(model, prepared, profile, nothing)
    assert found.shape == (3, *prepared.crop_shape)
    assert copies == 1


def test_networks_are_loaded_once_and_never_confused(make_model: Callable) -> None:
    first, second = (make_model(make_plans(unet_architecture()), folds=1) for _ in range(2))
    engine = TorchEngine("cpu")
    assert engine._network(first, 0) is engine._network(first, 0)
    assert engine._network(first, 0) is not engine._network(second, 0)


def test_wrong_weights_are_refused(make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    prepared = preprocess(make_scan((20, 20, 20)), MILLIMETRE, read_plan(model.plans))
    del model.networks[0]["encoder.stages.0.0.convs.0.conv.weight"]
    with pytest.raises(BundleError, match="missing"):
        TorchEngine("cpu").mean_over_folds(model, prepared, Profile.FAST, nothing)


def test_label_heads_become_regions_as_the_labels_module_says() -> None:
    logits = torch.randn(4, 3, 4, 5)
    expected = regions_from_label_probabilities(torch.softmax(logits, 0).numpy())
    assert TorchEngine("cpu")._probabilities(logits, "labels").numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_names_that_mean_no_device(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto"):
        check_device(name)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="choose --device cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="only 1"):
        check_device("cuda:3")


@pytest.mark.parametrize(("capability", "works"), [((8, 6), True), ((9, 0), True), ((7, 0), False), ((12, 0), False)])
def test_a_gpu_that_this_torch_is_not_built_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], works: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_90a", "compute_90"])
    if works:
        assert check_device("cuda").index == 0
    else:
        with pytest.raises(DeviceError, match="compute capability"):
            check_device("cuda")


@pytest.mark.parametrize("architecture", [unet_architecture(), mednext_architecture()], ids=["U-Net", "MedNeXt"])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_half_precision_as_on_a_gpu_agrees(device: str, architecture: dict[str, object], make_model: Callable) -> None:
    model = make_model(make_plans(architecture, spacing=(1.2, 1.2, 1.2)))
    prepared = preprocess(make_scan((32, 36, 30)), MILLIMETRE, read_plan(model.plans))
    engine = TorchEngine(device)
    engine._on_gpu, engine._batch = True, 8
    seen: list[tuple[torch.dtype, int]] = []
    engine._network(model, 0).register_forward_hook(
        lambda _, inputs, logits: seen.append((logits.dtype, len(inputs[0])))
    )
    for profile in Profile:
        found = engine.mean_over_folds(model, prepared, profile, nothing)
        expected = TorchEngine("cpu").mean_over_folds(model, prepared, profile, nothing)
        assert found.std() > 0.05, "the comparison must not be of constants"
        assert np.abs(found - expected).max() < 0.02
    assert seen == [(torch.float16, 8), (torch.float16, 1)], "one tile with its mirrorings, and one pass"


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    """An engine on the CPU that takes the ways of CUDA."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engine = TorchEngine("cpu")
    engine._on_gpu, engine._batch = True, 8
    return engine


@pytest.mark.parametrize(
    "architecture",
    [unet_architecture(), unet_architecture((2,) * 6), mednext_architecture(), mednext_architecture() | {"shuffle": 2}],
    ids=["U-Net", "deep U-Net", "MedNeXt", "coarser body"],
)
def test_networks_run_channels_last_on_a_gpu(
    architecture: dict[str, object], make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_plans(architecture))
    engine = as_on_a_gpu(monkeypatch)
    assert engine.description.endswith("float16")
    engine.load(model)
    assert engine.description.endswith("float16, channels last")
    assert all(type(network).__name__.startswith("ChannelsLast") for network in engine._networks.values())
    assert engine._placed == set(engine._networks.values()), "what was only tried is gone"
    # One model that has no such view is enough for the record not to say so.
    odd = make_model(make_plans(unet_architecture((4, 7))), name="odd", folds=1)
    engine.load(odd)
    assert engine.description.endswith("float16")


def gives_nan(_: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return torch.full((len(batch), 3, *batch.shape[2:]), torch.nan)


def is_sure_of_nothing(_: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return torch.full((len(batch), 3, *batch.shape[2:]), -20.0)


def does_not_compile(_: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("kernels do not compile\nline 1")


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (gives_nan, "differ by nan of their standard deviation"),
        (is_sure_of_nothing, "of their standard deviation"),
        (does_not_compile, "RuntimeError: kernels do not compile"),
    ],
)
def test_a_channels_last_view_that_does_not_work_is_left(
    forward: Callable,
    reason: str,
    make_model: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from inference.predict.engines.channels_last import ChannelsLastUNet

    monkeypatch.setattr(ChannelsLastUNet, "forward", forward)
    model = make_model(make_plans(unet_architecture()), name="unet")
    for fold in model.folds:
        # As trained networks are of noise: sure that there is no tumour, so that probabilities say nothing.
        model.tensors(fold)["decoder.seg_layers.1.bias"][:] -= 20
    engine = as_on_a_gpu(monkeypatch)
    engine.load(model)
    (message,) = caplog.messages
    assert message.startswith("unet: ")
    assert message.endswith(reason)
    assert [type(network).__name__ for network in engine._networks.values()] == ["PlainConvUNet"] * 2
    assert engine._placed == set(engine._networks.values())
    assert engine.description.endswith("float16")


def test_a_convolution_that_cudnn_cannot_do_changes_nothing_else(
    make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference.predict.engines.channels_last import ChannelsLastUNet

    def refused(_: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    engine = as_on_a_gpu(monkeypatch)
    engine.load(make_model(make_plans(mednext_architecture()), folds=1))
    monkeypatch.setattr(ChannelsLastUNet, "forward", refused)
    engine.load(make_model(make_plans(unet_architecture()), folds=1))
    assert not engine._one_at_a_time


def test_a_shortage_of_memory_is_no_reason_to_leave_channels_last(
    make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference.predict.engines.channels_last import ChannelsLastUNet

    forward, failures = ChannelsLastUNet.forward, [torch.OutOfMemoryError()]

    def short_of_memory(network: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if failures:
            raise failures.pop()
        return forward(network, batch)

    first, second = (make_model(make_plans(unet_architecture()), folds=1) for _ in range(2))
    engine = as_on_a_gpu(monkeypatch)
    engine.load(make_model(make_plans(mednext_architecture()), folds=1))
    monkeypatch.setattr(ChannelsLastUNet, "forward", short_of_memory)
    engine.load(first)
    assert engine._one_at_a_time
    assert engine.description.endswith("channels last")
    failures.append(torch.OutOfMemoryError())
    with pytest.raises(DeviceError, match="not enough memory"):
        engine.load(second)
