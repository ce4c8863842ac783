"""Where the seconds of prediction go: model by model, and by torch's operators."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from inference.errors import UsageError
from inference.intake.cases import Case
from inference.intake.scan import read_scan
from inference.pipeline import System
from inference.predict.engines import Advance, Engine, Heed, NetworkSource
from inference.predict.ensemble import predict
from inference.predict.preprocess import Preprocessed
from inference.settings import Profile


@dataclass(frozen=True)
class Operator:
    """One of torch's operators, without those that it calls."""

    name: str
    calls: int
    seconds: float
    """On the device: of its kernels on a GPU, of the thread that calls it on a CPU."""


class TimedEngine:
    """An engine that counts the seconds of its models, each of which ends with a copy to the host."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.device, self.description = engine.name, engine.device, engine.description
        self.seconds: dict[str, float] = {}
        """By model, the last time."""

    def load(self, model: NetworkSource) -> None:
        """As the engine does."""
        self._engine.load(model)

    def mean_over_folds(
        self,
        model: NetworkSource,
        prepared: Preprocessed,
        profile: Profile,
        advance: Advance,
        heed: Heed | None = None,
    ) -> NDArray[np.float32]:
        """As the engine does."""
        begin = time.perf_counter()
        mean = self._engine.mean_over_folds(model, prepared, profile, advance, heed)
        self.seconds[model.name] = time.perf_counter() - begin
        return mean


def where_time_goes(system: System, case: Case, most: int) -> tuple[dict[str, object], list[str]]:
    """Predict a case three times, to get ready, by the clock and under torch's profiler: as JSON, and in lines.

    Raises UsageError for another engine than torch.
    """
    if system.engine.name != "torch":
        raise UsageError("--operators: needs --engine torch")
    scan, engine = read_scan(case), TimedEngine(system.engine)

    def once() -> float:
        begin = time.perf_counter()
        predict(scan.data, scan.spacing, system.bundle, engine, system.profile)
        return time.perf_counter() - begin

    once()
    whole = once()
    by_model = dict(engine.seconds)
    on_gpu = engine.device != "cpu"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu], acc_events=True) as recorded:
        once()
    operators = _operators(recorded, on_gpu=on_gpu)
    steps = {**by_model, "the rest": whole - sum(by_model.values())}
    lines = [f"{engine.description}: predict {whole:.3f} s, " + ", ".join(f"{k} {v:.3f} s" for k, v in steps.items())]
    total = sum(one.seconds for one in operators)
    lines += [f"{one.seconds / total:6.1%} {one.seconds:8.4f} s {one.calls:7} × {one.name}" for one in operators[:most]]
    return {"predict_seconds": whole, "steps": steps, "operators": [asdict(one) for one in operators]}, lines


def _operators(recorded: profile, *, on_gpu: bool) -> list[Operator]:
    """All that took time, the slowest first."""
    found = [
        Operator(row.key, row.count, (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e6)
        for row in recorded.key_averages()
        # A GPU's kernels stand beside the operators that launch them, which have their time too.
        if row.device_type.name == "CPU"
    ]
    return sorted((one for one in found if one.seconds > 0), key=lambda one: -one.seconds)
