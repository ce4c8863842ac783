"""One GPU for each job where several jobs share a machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.files import prepare_folder
from training.locks import take

_PATIENCE = 2.0
"""Seconds between two looks at GPUs that are all taken."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES calls them; asking starts no CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def own_gpu(work: Path) -> Iterator[None]:
    """Within, this process sees one GPU that no other job of the run in `work` uses; with fewer than two, all as is.

    A GPU is claimed by a lock on a file, which the system takes back when a job ends, however it ends. To be entered
    before CUDA is started; the choice holds for the rest of the process.
    """
    devices = visible_gpus()
    if len(devices) < 2:
        yield
        return
    folder = work / "gpus"
    prepare_folder(folder)
    while True:
        for device in devices:
            with (folder / f"{socket.gethostname()}.{device.replace('/', '_')}").open("w") as claim:
                if not take(claim):
                    continue
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                yield
                return
        time.sleep(_PATIENCE)
