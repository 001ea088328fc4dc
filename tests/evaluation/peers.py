"""Our measures beside those of other libraries on the same features and images; a script, not a test.

    pip install --no-deps torch-fidelity torchmetrics lightning-utilities prdc pytorchfwd ptwt PyWavelets
    pip install scikit-image scikit-learn
    python -m tests.evaluation.peers values     # each value, theirs, and the difference
    python -m tests.evaluation.peers costs      # seconds and memory on 10,000 x 2,048 features, a process each

It needs what is above, which the tests do without: they compare with closed forms and slow loops.
"""
import contextlib
import hashlib
import importlib
import io
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from vqim.data.source import Emoji
from vqim.evaluation import distances
from vqim.evaluation.frechet import Moments, frechet_distance
from vqim.evaluation.inception_score import InceptionScore
from vqim.evaluation.kid import kernel_distance
from vqim.evaluation.neighbours import compare_neighbours
from vqim.evaluation.wavelets import PacketMoments, haar_packets, scale, wavelet_distance


def features(count: int, width: int, seed: int, shift: float) -> np.ndarray:
    """Correlated non-negative rows with a spectrum that falls, as after a network's last rectifier."""
    generator = np.random.default_rng(seed)
    basis = np.random.default_rng(100).standard_normal((width, width)) * np.arange(1, width + 1) ** -0.6
    rows = generator.standard_normal((count, width)) @ basis.T
    return (np.maximum(rows + shift, 0) / rows.std()).astype(np.float32)


def gaussian(rows: np.ndarray, batch_size: int = 64):  # type: ignore[no-untyped-def]
    """Our mean and covariance."""
    moments = Moments(rows.shape[1])
    for start in range(0, len(rows), batch_size):
        moments.add(rows[start:start + batch_size])
    return moments.gaussian()


def torchmetrics_fid(a: np.ndarray, b: np.ndarray, batch_size: int = 64) -> float:
    """torchmetrics' accumulator with float64 sums, given features in place of images."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        num_features = a.shape[1]

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

    metric = FrechetInceptionDistance(feature=Given())
    for rows, real in ((a, True), (b, False)):
        for start in range(0, len(rows), batch_size):
            metric.update(torch.from_numpy(rows[start:start + batch_size]), real=real)
    return float(metric.compute())


def torch_fidelity_fid(a: np.ndarray, b: np.ndarray) -> float:
    """torch-fidelity's, on all features at once."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (a, b)]
    return float(fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])


def show(name: str, ours: float, library: str, theirs: float) -> None:
    """A row of the table."""
    print(f"| {name} | {ours:.9g} | {library} | {theirs:.9g} | {ours - theirs:+.1e} |", flush=True)


def values_on_features() -> None:
    """FID, KID, IS, precision, recall, density and coverage of given features and logits."""
    from prdc import compute_prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    for count, width in ((3000, 512), (400, 512)):
        a, b = features(count, width, 0, 0.3), features(count, width, 1, 0.2)
        ours, name = frechet_distance(gaussian(a), gaussian(b)), f"Frechet, {count} x {width}"
        show(name, ours, "torch-fidelity", torch_fidelity_fid(a.astype(np.float64), b.astype(np.float64)))
        show(name, ours, "torchmetrics", torchmetrics_fid(a.astype(np.float64), b.astype(np.float64)))
        one, other = gaussian(a), gaussian(b)
        show(name, ours, "pytorch-fid", calculate_frechet_distance(
            one.mean_D, one.covariance_DD, other.mean_D, other.covariance_DD))
        centred = [rows.astype(np.float64) - rows.mean(0, dtype=np.float64) for rows in (a, b)]
        overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
        squares = sum((rows**2).sum() for rows in centred)
        show(name, ours, "features' own singular values",
             np.sum((one.mean_D - other.mean_D) ** 2) + (squares - 2 * overlap) / (count - 1))
    a, b = features(1500, 512, 0, 0.3), features(1200, 512, 1, 0.2)
    double = [torch.from_numpy(rows.astype(np.float64)) for rows in (b, a)]
    theirs = kid_features_to_metric(*double, kid_subsets=100, kid_subset_size=1000, verbose=False)
    for kind, value in zip(("mean", "std"), kernel_distance(b, a), strict=True):
        show(f"KID {kind}", value, "torch-fidelity", theirs[f"kernel_inception_distance_{kind}"])
    found = compare_neighbours(a, b)
    theirs = prc_features_to_metric(*double, prc_neighborhood=3, prc_batch_size=10000, verbose=False)
    with contextlib.redirect_stdout(io.StringIO()):
        prdc = {k: compute_prdc(a.astype(np.float64), b.astype(np.float64), k) for k in (3, 5)}
    for name in ("precision", "recall"):
        show(name, getattr(found, name), "torch-fidelity", theirs[name])
        show(name, getattr(found, name), "prdc", prdc[3][name])
    for name in ("density", "coverage"):
        show(name, getattr(found, name), "prdc", prdc[5][name])
    logits = torch.from_numpy(features(1503, 200, 3, 0.3) * 3)
    for shuffled in (False, True):
        score = InceptionScore(*logits.shape, shuffled=shuffled)
        score.add(logits.numpy())
        theirs = isc_features_to_metric(logits, shuffle=shuffled)
        for kind, value in zip(("mean", "std"), score.result(), strict=True):
            show(f"IS {kind}, {'shuffled' if shuffled else 'in order'}", value, "torch-fidelity",
                 theirs[f"inception_score_{kind}"])


def emoji(split: str, count: int, step: int) -> torch.Tensor:
    """Images [0, 1] of the emoji that ship with vqim."""
    source = Emoji(split)
    images = np.stack([np.asarray(source[i].image) for i in range(count)])[:, ::step, ::step]
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def values_on_images() -> None:
    """The wavelet distance and SSIM, PSNR of real images."""
    from pytorchfwd.fwd import _compute_avg_frechet_distance, compute_packet_statistics
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    for step in (4, 1):
        sets = [emoji(split, 300, step) for split in ("train", "validation")]
        packets = []
        for images in sets:
            moments = PacketMoments(256, images[0].numel() // 256)
            moments.add(haar_packets(images).numpy())
            packets.append(moments.gaussians(scale()))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            (mean, covariance), (mean_b, covariance_b) = (
                compute_packet_statistics([images.double()], "Haar", 4, False) for images in sets)
            theirs = _compute_avg_frechet_distance(mean, mean_b, covariance, covariance_b)
        show(f"FWD, 300 emoji, {64 // step}x{64 // step}", wavelet_distance(*packets), "pytorchfwd", theirs)
    torch.set_default_dtype(torch.float32)  # pytorchfwd changes it
    a, b = (emoji(split, 20, 1) for split in ("train", "validation"))
    pairs = [(x.permute(1, 2, 0).double().numpy(), y.permute(1, 2, 0).double().numpy())
             for x, y in zip(a, b, strict=True)]
    show("SSIM, 20 pairs", distances.ssim(a, b).mean().item(), "scikit-image", float(np.mean([structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2)
        for x, y in pairs])))
    show("PSNR, 20 pairs", distances.psnr(a, b).mean().item(), "scikit-image", float(np.mean([
        peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs])))


def costs() -> None:
    """Seconds of one core and the process's largest memory, for each library in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, seed, shift in (("a", 0, 0.3), ("b", 1, 0.2)):
            np.save(pathlib.Path(folder) / f"{name}.npy", features(10000, 2048, seed, shift))
        for library in ("nothing", "vqim", "torchmetrics", "torch-fidelity"):
            print(subprocess.run([sys.executable, "-m", "tests.evaluation.peers", "cost", library, folder], check=True,
                                 capture_output=True, text=True).stdout.strip(), flush=True)


def cost(library: str, folder: str) -> None:
    """Accumulates 10,000 features of two sets in batches of 64, and computes the distance."""
    a, b = (np.load(pathlib.Path(folder) / f"{name}.npy") for name in "ab")
    for module in ("torch_fidelity.metric_fid", "torchmetrics.image.fid"):
        importlib.import_module(module)  # in every process, so that memory compares
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    value = {"nothing": lambda: 0.0, "vqim": lambda: frechet_distance(gaussian(a), gaussian(b)),
             "torchmetrics": lambda: torchmetrics_fid(a, b), "torch-fidelity": lambda: torch_fidelity_fid(a, b),
             }[library]()
    seconds = time.process_time() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {library} | {value:.6f} | {seconds:.1f} s | {more:.0f} MiB more |")


def write_random_inception(folder: str) -> pathlib.Path:
    """A file of weights as that of FID's Inception, which no package has: the same architecture, random values."""
    import torchvision
    torch.manual_seed(0)
    state = torchvision.models.inception_v3(
        weights=None, aux_logits=False, num_classes=1008, init_weights=False).state_dict()
    for name, array in state.items():
        if name.endswith(("running_mean", "bias")):
            array.normal_(0, 0.1)
        elif "running_var" in name or array.ndim == 1 and name.endswith("weight"):
            array.uniform_(0.5, 1.5)
        elif array.ndim == 4:
            array.normal_(0, (2 / array[0].numel()) ** 0.5)
    path = pathlib.Path(folder) / "weights.pth"
    torch.save(state, path)
    return path


def values_of_networks() -> None:
    """Inception with random weights, and its resize, beside torch-fidelity's."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    from vqim.contracts.context import Context
    from vqim.frozen.inception import Inception, tensorflow_resize_matrix
    from vqim.runtime.torch import TorchKernels, TorchRuntime
    from vqim.training.state import start
    images = emoji("train", 4, 1)
    matrix = torch.from_numpy(tensorflow_resize_matrix(64, 299))
    theirs = interpolate_bilinear_2d_like_tensorflow1x((images * 255).round(), size=(299, 299), align_corners=False)
    difference = (matrix @ (images * 255).round() @ matrix.T - theirs).abs().max()
    print(f"TensorFlow 1's resize, 64 to 299: largest difference {difference:.1e} of 255")
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_inception(folder)
        network = Inception(64, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
        spatial: list[torch.Tensor] = []
        extractor.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[2]))
        with torch.no_grad():
            pooled, logits = extractor((images * 255).round().to(torch.uint8))
            found = network(start(network.init_spec(), 0, TorchRuntime()).arrays, images,
                            context=Context(TorchKernels()))
    for name, ours, theirs in (("pooled", found.pooled_BC, pooled), ("logits_unbiased", found.logits_BY, logits), (
            "spatial", found.spatial_BC, spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1))):
        print(f"Inception, random weights, {name}: largest difference {(ours - theirs).abs().max():.2e} of values "
              f"up to {theirs.abs().max():.3g}")


if __name__ == "__main__":
    if sys.argv[1] == "cost":
        cost(*sys.argv[2:])
    elif sys.argv[1] == "costs":
        costs()
    else:
        values_on_features()
        values_on_images()
        values_of_networks()
