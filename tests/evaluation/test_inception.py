"""FID and KID by torch-fidelity. The real weights are not at hand: random ones in the same format stand in for them."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.builders import save_images
from support.programs import run_in

from msggan.config import TrainConfig
from msggan.errors import CheckpointError, DataError
from msggan.evaluation import inception
from msggan.trainer import Trainer

pytestmark = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")


def normal(count: int, *, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_fid_is_the_squared_shift_of_the_mean_plus_the_difference_of_deviations() -> None:
    features = normal(100, seed=0)
    assert inception.frechet_distance(features, features).value == pytest.approx(0, abs=1e-6)
    shifted = features + torch.tensor([3.0, 0, 4])
    assert inception.frechet_distance(features, shifted).value == pytest.approx(25, rel=1e-6)
    # Twice as wide: the trace of (1 + 4 − 2·2)·Σ.
    wide = 2 * (features - features.mean(dim=0)) + features.mean(dim=0)
    assert inception.frechet_distance(features, wide).value == pytest.approx(features.var(dim=0).sum().item(), rel=1e-5)


def test_the_interval_of_kid_contains_zero_only_for_equal_distributions() -> None:
    reals = normal(200, seed=0)
    value, low, high = inception.kernel_inception_distance(reals, normal(200, seed=1))
    assert low < 0 < high
    assert low < value < high
    assert inception.kernel_inception_distance(reals, normal(200, seed=1) + 1).low > 0


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_another_file_is_refused_and_no_code_in_it_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("nonsense")
    Path("letter.pth").write_text("hello")  # which as a pickle raises KeyError
    Path("code.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, "other.pth")
    torch.save([1, 2, 3], "list.pth")
    save_file({"fc.weight": torch.zeros(2)}, "generator.safetensors")
    no_weights = ("text.pth", "letter.pth", "code.pth", "generator.safetensors", "missing.pth")
    problems = dict.fromkeys(no_weights, "is not a file of weights that PyTorch saved.")
    for name, problem in {**problems, **dict.fromkeys(("other.pth", "list.pth"), "has other weights than")}.items():
        with pytest.raises(CheckpointError, match=f"--inception {name}: {problem}") as refused:
            inception.Inception(Path(name))
        assert "6726825d.pth, or --inception download" in refused.value.hint
    assert not Path("executed").exists()


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"6726825d.pth: cannot be downloaded \(.*\)\.\nDownload it elsewhere"):
        inception.download_inception()


def random_weights(path: Path) -> dict[str, torch.Tensor]:
    """Initial weights, scaled so that signals neither vanish nor explode. path: where an empty file may be written."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: object) -> None:
            """Keeps the initial ones."""

    torch.save({}, path)
    torch.manual_seed(0)
    weights = Untrained("random", ["2048"], str(path)).state_dict()
    return {name: 6**0.5 * tensor if name.endswith("conv.weight") else tensor for name, tensor in weights.items()}


@pytest.mark.slow
def test_a_run_is_measured_with_weights_in_the_format_of_the_published_ones(tmp_path: Path) -> None:
    torch.save(random_weights(tmp_path / "empty.pth"), tmp_path / "random.pth")
    save_images(tmp_path / "images", 400, 8)
    config = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=0.008)
    Trainer(config, data=tmp_path / "images", run_dir=tmp_path / "run", device="cpu").run()
    args = ["--run-dir", "run", "--num", "32", "--inception", "random.pth", "--device", "cpu", "-o", "json"]
    ended = run_in(tmp_path, "msggan.evaluate", *args)
    assert ended.exit_code == 0, ended.stderr
    assert "random.pth: SHA-256 " in ended.stderr
    assert "is not that of the published weights, 6726825d" in ended.stderr
    result = ended.json
    assert not result["inception"]["published"]
    kid, fid = result["measures"]["kid"], result["measures"]["fid"]
    assert kid["interval"][0] > kid["real"]["value"]
    assert kid["real"]["interval"][0] <= kid["real"]["value"] <= kid["real"]["interval"][1]
    assert fid["value"] > 2 * fid["real"]["value"] > 0
    assert "interval" not in fid
