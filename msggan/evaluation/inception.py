"""FID and KID by torch-fidelity, in the features of the Inception-v3 that published values are computed with."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from msggan.errors import CheckpointError, DataError
from msggan.evaluation.estimates import HALVES, Estimate, Z
from msggan.runs.checkpoint import reason_of
from msggan.runs.files import sha256_of

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
LAYER = "2048"
IMAGES_PER_PART = 16  # each becomes 299² pixels
HINT = (
    "Use torch-fidelity's weights-inception-2015-12-05-6726825d.pth, pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
)


def download_inception() -> Path:
    """The weights in the cache of PyTorch, downloaded from GitHub if they are not there. Raises `DataError`."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=SHA256, progress=False)
        except (OSError, RuntimeError) as error:  # without a connection; another file
            raise DataError(
                f"{URL_INCEPTION_V3}: cannot be downloaded ({reason_of(error)}).",
                "Download it elsewhere, and use --inception PATH.",
            ) from error
    return path


class Inception:
    """Images to features, by the weights in a file. Raises `CheckpointError` if they are not of this network.

    sha256: of the file; `is_published` tells whether it is the one that published values are computed with.
    """

    def __init__(self, path: Path, *, device: torch.device | str = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.path, self.device = path, torch.device(device)
        problem = "is not a file of weights that PyTorch saved"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of TorchScript, which is refused
                torch.load(path, weights_only=True, map_location="meta")  # torch-fidelity would run code in the file
            problem = "has other weights than those of the Inception-v3 of the FID"
            self.network = FeatureExtractorInceptionV3("inception", [LAYER], str(path)).to(self.device)
        except Exception as error:  # unpickling raises whatever the first wrong byte leads to
            raise CheckpointError(
                f"--inception {path}: {problem}.", f"{HINT}, or --inception download to fetch it from GitHub."
            ) from error
        self.sha256 = sha256_of(path)
        self.is_published = self.sha256 == SHA256

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images: (N, 3, R, R) uint8 → (N, 2048) float32 on the CPU."""
        return torch.cat([self.network(part.to(self.device))[0].cpu() for part in images.split(IMAGES_PER_PART)])


def frechet_distance(reals: Tensor, fakes: Tensor) -> Estimate:
    """FID of features (N, d), without an interval. It falls with N: compare only values of the same N.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    first, second = (fid_features_to_statistics(each.double()) for each in (reals, fakes))
    return Estimate(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def kernel_inception_distance(reals: Tensor, fakes: Tensor) -> Estimate:
    """KID of features (N, d): the mean over random halves of both sets and 1.96 deviations of them."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    half = min(len(reals), len(fakes)) // 2
    found = kid_features_to_metric(
        reals.double(), fakes.double(), kid_subsets=HALVES, kid_subset_size=half, verbose=False
    )
    value, spread = found[KEY_METRIC_KID_MEAN], Z * found[KEY_METRIC_KID_STD]
    return Estimate(value, value - spread, value + spread)
