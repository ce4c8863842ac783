"""Images like the ranked system's, of random networks, in every form in which an image can be saved.

    python -m tests.training.bundles.lookalike IMAGE.tar [--large]

writes one as docker saves it, with `--large` of networks as large as the ranked ones.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from inference.predict.networks import build_network
from inference.refine.radiomics import FEATURE_NAMES
from tests.inference.tiny import MEDNEXT, UNET, plans

TASK = "BraTS2024-SSA"
NNUNET = f"Dataset022_{TASK}/nnUNetTrainer_150epochs__nnUNetPlans_pretrained_GLI__3d_fullres"
MEDNEXTS = f"3d_fullres/Task022_{TASK}/nnUNetTrainerV2_MedNeXt_M_kernel3_150epochs__nnUNetPlans_pretrained_SSA"
LABELS = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
REGIONS = {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
CHANNELS = ("t1n", "t1c", "t2w", "t2f")
CLUSTERS = 8
PATCH = 32
ENSEMBLER = "import numpy as np\ndef ssa_ensemble(prob):\n    return np.argmax(prob, axis=0)\n"
RUNNER = "TASK: str = 'BraTS-SSA'\ntry:\n    cluster = int('x')\nexcept Exception as e:\n    cluster = 4\n"
LARGE_UNET = {
    **UNET,
    "arch_kwargs": {
        **UNET["arch_kwargs"],
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
    },
}
LARGE_MEDNEXT = {**MEDNEXT, "arch_kwargs": {"variant": "M", "kernel_size": 3}}
Files = dict[str, bytes]


def tumours(count: int, seed: int = 0) -> np.ndarray:
    """Features (count, 386) in which what is the same in pyradiomics is the same."""
    values = np.random.default_rng(seed).lognormal(0, 2, (count, len(FEATURE_NAMES)))
    place = {name: index for index, name in enumerate(FEATURE_NAMES)}
    for channel in CHANNELS:
        values[:, place[f"{channel}_firstorder_TotalEnergy"]] = values[:, place[f"{channel}_firstorder_Energy"]]
        values[:, place[f"{channel}_glcm_SumAverage"]] = 2 * values[:, place[f"{channel}_glcm_JointAverage"]]
    return values


def fitted() -> dict[str, object]:
    """A subtype model as scikit-learn fits it: 9 components, 8 clusters."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import Normalizer

    values = tumours(60)
    normalizer = Normalizer("l2")
    pca = PCA(9, random_state=0).fit(normalizer.fit_transform(values))
    kmeans = KMeans(CLUSTERS, n_init=3, random_state=0).fit(pca.transform(normalizer.transform(values)))
    return {"normalizer": normalizer, "pca": pca, "kmeans": kmeans}


def thresholds() -> tuple[dict[str, object], dict[str, object]]:
    """Components and ratios by subtype, in which every subtype differs."""
    small = {
        f"cluster_{k}": {f"label_{label}": {"th": 10 * k + 5 * label} for label in (1, 2, 3)} for k in range(CLUSTERS)
    }
    ratio = {
        f"cluster_{k}": {
            "label_1": {"th": 0.0, "redefine_to": 2},
            "label_2": {"th": 0.0, "redefine_to": 1},
            "label_3": {"th": 0.02 * k, "redefine_to": 1},
        }
        for k in range(CLUSTERS)
    }
    return {"BraTS-SSA": small, "BraTS-PED": {}}, {"BraTS-SSA": ratio, "BraTS-PED": {}}


def old_plans(patch: int = PATCH, **changes: object) -> bytes:
    """The `plans.pkl` of nnU-Net v1."""
    stage = {"patch_size": np.array([patch] * 3), "current_spacing": np.array([1.0, 1.0, 1.0]), "batch_size": 2}
    value = {
        "num_stages": 1,
        "modalities": {number: name.upper() for number, name in enumerate(CHANNELS)},
        "normalization_schemes": OrderedDict((number, "nonCT") for number in range(4)),
        "use_mask_for_norm": OrderedDict((number, True) for number in range(4)),
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "num_classes": 3,
        "all_classes": [1, 2, 3],
        "dataset_properties": {"all_sizes": [(150, 180, 140)], "spacing": np.float64(1)},
        "plans_per_stage": {0: stage},
    }
    return pickle.dumps({**value, **changes})


def saved(contents: object) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


def decided(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A random network's weights with heads that make up their mind: without, all voxels are much alike."""
    heads = ("decoder.seg_layers", "out_0")
    return {
        name: tensor * 20 if name.startswith(heads) and name.endswith("weight") else tensor
        for name, tensor in network.state_dict().items()
    }


def nnunet_files(heads: Mapping[str, object], unet: dict[str, object], patch: int) -> Files:
    """Five folds of nnU-Net v2."""
    stored = plans(unet)
    stored["configurations"]["3d_fullres"]["patch_size"] = [patch] * 3
    files = {
        "dataset.json": json.dumps(
            {"channel_names": dict(map(reversed, zip(CHANNELS, "0123", strict=True))), "labels": heads}
        ).encode(),
        "plans.json": json.dumps(stored).encode(),
    }
    for fold in range(5):
        torch.manual_seed(fold)
        network = build_network(unet, 4, 4 if heads is LABELS else 3, deep_supervision=True)
        contents = {
            "network_weights": decided(network),
            "current_epoch": 150,
            "init_args": {"plans": stored, "configuration": "3d_fullres", "fold": fold},
            "trainer_name": "nnUNetTrainer_150epochs",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        files[f"fold_{fold}/checkpoint_final.pth"] = saved(contents)
        files[f"fold_{fold}/debug.json"] = b"{}"
    return files


def mednext_files(outputs: int, size: dict[str, object], patch: int) -> Files:
    """Five folds of mednextv1."""
    files = {"plans.pkl": old_plans(patch)}
    for fold in range(5):
        torch.manual_seed(100 + fold)
        network = build_network(size, 4, outputs, deep_supervision=True)
        state = OrderedDict({**decided(network), "dummy_tensor": torch.ones(1)})
        files[f"fold_{fold}/model_final_checkpoint.model"] = saved({"epoch": 150, "state_dict": state})
        files[f"fold_{fold}/model_final_checkpoint.model.pkl"] = b"never opened"
    return files


def zipped(files: Files, root: str) -> bytes:
    """Files in a zip, under a folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, contents in files.items():
            archive.writestr(f"{root}/{name}", contents)
    return file.getvalue()


def system(*, heads: Mapping[str, object] = LABELS, outputs: int = 4, large: bool = False) -> Files:
    """All files of a system under `mlcube_project`, networks in zips."""
    unet, mednext, patch = (LARGE_UNET, LARGE_MEDNEXT, 128) if large else (UNET, MEDNEXT, PATCH)
    small, ratio = thresholds()
    files = {
        "weights/BraTS2024_SSA_nnunetv2_model.zip": zipped(nnunet_files(heads, unet, patch), NNUNET),
        "weights/BraTS2024_SSA_MedNeXt_model.zip": zipped(mednext_files(outputs, mednext, patch), MEDNEXTS),
        "weights/name.json": json.dumps(
            {f"-{name}.nii.gz": f"_{n:04}.nii.gz" for n, name in enumerate(CHANNELS)}
        ).encode(),
        "ensembler/weights_cv.json": json.dumps({"BraTS-SSA": {"nnUNetv2": 0.4722, "MedNeXt": 0.5278}}).encode(),
        "ensembler/ssa_weighted_ensemble.py": ENSEMBLER.encode(),
        "postproc/cc_thresholds_cv.json": json.dumps(small).encode(),
        "postproc/lblredef_thresholds_cv.json": json.dumps(ratio).encode(),
        "kmeans-cluster-artifacts/SSA_cluster.pkl": pickle.dumps(fitted()),
        "radiomics/params.yaml": b"setting:\n    geometryTolerance: 10\n    normalize: True\n",
        "runner_ssa.py": RUNNER.encode(),
        "mlcube.py": b"print('never run')\n",
    }
    return {f"mlcube_project/{name}": contents for name, contents in files.items()}


def layers_of(files: Files) -> list[bytes]:
    """Two layers: one with much that is of no interest or wrong, and one that deletes and overwrites it."""
    lower = {
        "usr/lib/python3.10/json.py": b"x = 1\n",
        "mlcube_project/ensembler/weights_cv.json": b"an older table",
        "mlcube_project/ensembler/forgotten.py": b"def f(prob):\n    return prob > 0.5\n",
        "mlcube_project/old/kmeans-cluster-artifacts/SSA_cluster.pkl": b"an older model",
        "tmp/unpacked.zip": b"no zip",
    }
    deletions = {"mlcube_project/ensembler/.wh.forgotten.py": b"", "mlcube_project/old/.wh..wh..opq": b""}
    return [tarred(lower, links={"usr/bin/python": "python3", "bin": "usr/bin"}), tarred({**deletions, **files})]


def tarred(files: Files, links: Mapping[str, str] | None = None) -> bytes:
    """Files, folders above them and links as a tar."""
    file = io.BytesIO()
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in sorted(folders):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return file.getvalue()


def sha(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def configuration(layers: Sequence[bytes]) -> bytes:
    """An image's configuration, as far as it is read."""
    digests = [f"sha256:{sha(layer)}" for layer in layers]
    return json.dumps({"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": digests}}).encode()


def docker_old(layers: Sequence[bytes]) -> bytes:
    """`docker save` before 25: a folder a layer."""
    config = configuration(layers)
    names = [f"{sha(layer)[::-1]}/layer.tar" for layer in layers]
    manifest = [{"Config": f"{sha(config)}.json", "RepoTags": ["ranked:latest"], "Layers": names}]
    files = dict(zip(names, layers, strict=True))
    return tarred({**files, f"{sha(config)}.json": config, "manifest.json": json.dumps(manifest).encode()})


def oci(layers: Sequence[bytes], *, packed: bool = True, docker: bool = False) -> bytes:
    """An OCI archive, its layers gzipped; with `docker` as docker saves it from 25 on."""
    config = configuration(layers)
    blobs = [gzip.compress(layer, 1) if packed else layer for layer in layers]
    image = {
        "schemaVersion": 2,
        "config": {"digest": f"sha256:{sha(config)}"},
        "layers": [{"digest": f"sha256:{sha(blob)}"} for blob in blobs],
    }
    manifest = json.dumps(image).encode()
    index = {"manifests": [{"digest": f"sha256:{sha(manifest)}"}]}
    files = {f"blobs/sha256/{sha(blob)}": blob for blob in (*blobs, config, manifest)}
    files |= {"index.json": json.dumps(index).encode(), "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    if docker:
        names = [f"blobs/sha256/{sha(blob)}" for blob in blobs]
        listed = [{"Config": f"blobs/sha256/{sha(config)}", "RepoTags": None, "Layers": names}]
        files["manifest.json"] = json.dumps(listed).encode()
    return tarred(files)


def write_folder(files: Files, folder: Path) -> Path:
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    return folder


FORMS = {
    "docker-old": lambda files: docker_old(layers_of(files)),
    "docker-new": lambda files: oci(layers_of(files), packed=False, docker=True),
    "docker-gzipped": lambda files: gzip.compress(docker_old(layers_of(files)), 1),
    "oci": lambda files: oci(layers_of(files)),
    "flat": tarred,
}
"""Ways to save an image, as one file."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the image of a system that looks like the ranked one.")
    parser.add_argument("image", type=Path, metavar="FILE.tar", help="file to write, as docker saves images")
    parser.add_argument("--large", action="store_true", help="networks of the ranked system's size")
    arguments = parser.parse_args()
    arguments.image.write_bytes(FORMS["docker-new"](system(large=arguments.large)))
