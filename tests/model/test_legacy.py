"""BMSG-GAN's files: they load under our names, are written under theirs, become runs, and execute nothing."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.builders import save_images
from torch import Tensor

from msggan import Run, TrainConfig, Trainer, load_generator
from msggan.commands.verbs import SampleOptions
from msggan.errors import CheckpointError, RunFolderError
from msggan.legacy import convert_state_dict, import_generator, load_legacy, save_legacy, to_legacy_state_dict
from msggan.networks import Discriminator, Generator
from msggan.pictures.grids import generate
from msggan.pictures.sampler import Sampler
from msggan.randomness import latents_of
from msggan.runs.folder import RunFolder, state_of

# BMSG-GAN's name → ours, at depth 4, written out by hand: I is 0 … 3 in the generator.
GENERATOR = {
    "layers.0.conv_1": "first.conv_1",
    "layers.0.conv_2": "first.conv_2",
    "layers.1.conv_1": "blocks.0.conv_1",
    "layers.1.conv_2": "blocks.0.conv_2",
    "layers.2.conv_1": "blocks.1.conv_1",
    "layers.2.conv_2": "blocks.1.conv_2",
    "layers.3.conv_1": "blocks.2.conv_1",
    "layers.3.conv_2": "blocks.2.conv_2",
    "rgb_converters.0": "to_rgb.0",
    "rgb_converters.1": "to_rgb.1",
    "rgb_converters.2": "to_rgb.2",
    "rgb_converters.3": "to_rgb.3",
}
DISCRIMINATOR = {
    "rgb_to_features.0": "from_rgb.1",
    "rgb_to_features.1": "from_rgb.2",
    "rgb_to_features.2": "from_rgb.3",
    "final_converter": "from_rgb.0",
    "layers.0.conv_1": "blocks.0.conv_1",
    "layers.0.conv_2": "blocks.0.conv_2",
    "layers.1.conv_1": "blocks.1.conv_1",
    "layers.1.conv_2": "blocks.1.conv_2",
    "layers.2.conv_1": "blocks.2.conv_1",
    "layers.2.conv_2": "blocks.2.conv_2",
    "final_block.conv_1": "last.conv_1",
    "final_block.conv_2": "last.conv_2",
    "final_block.conv_3": "last.conv_3",
}


def plain(name: str) -> str:
    return name


def in_front(name: str) -> str:
    """As data parallelism names the whole network."""
    return f"module.{name}"


def in_the_middle(name: str) -> str:
    """As the discriminator's layers are named when saved from a GPU."""
    kind, _, rest = name.partition(".")
    number, dot, rest = rest.partition(".")
    return f"{kind}.{number}.module.{rest}" if number.isdigit() else f"{kind}.module.{number}{dot}{rest}"


def both(name: str) -> str:
    return in_front(in_the_middle(name))


def originals(ours: dict[str, Tensor], names: dict[str, str], spelt: Callable[[str], str]) -> dict[str, Tensor]:
    """Our state dict under BMSG-GAN's names."""
    return {
        spelt(f"{theirs}.{kind}"): ours[f"{mine}.{kind}"]
        for theirs, mine in names.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("spelt", [plain, in_front, in_the_middle, both])
@pytest.mark.parametrize(("network", "names"), [(Generator, GENERATOR), (Discriminator, DISCRIMINATOR)])
def test_names_of_the_original_become_ours(
    network: type[Generator | Discriminator], names: dict[str, str], spelt: Callable[[str], str]
) -> None:
    ours = network(4, 8).state_dict()
    converted = convert_state_dict(originals(ours, names, spelt))
    assert converted.keys() == ours.keys()
    assert all(converted[name] is not None and torch.equal(converted[name], ours[name]) for name in ours)
    network(4, 8).load_state_dict(converted)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_saved_file_loads(tmp_path: Path, ordered: bool, zipped: bool) -> None:
    ours = Generator(4, 8).state_dict()
    state = originals(ours, GENERATOR, in_front)
    path = tmp_path / "GAN_GEN_SHADOW_12.pth"
    torch.save(collections.OrderedDict(state) if ordered else state, path, _use_new_zipfile_serialization=zipped)
    loaded = load_legacy(path)
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[name], ours[name]) for name in ours)


def test_a_smaller_network_loads_too() -> None:
    """Depth 1 has one block, and the final converter alone."""
    ours = {"first.conv_1.weight": torch.zeros(1), "to_rgb.0.weight": torch.zeros(1)}
    assert (
        convert_state_dict({"layers.0.conv_1.weight": torch.zeros(1), "rgb_converters.0.weight": torch.zeros(1)})
        == ours
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "layers",
        "conv_1.weight",
        "mapping.0.weight",
        "style.module.weight",
        "xlayers.0.conv_1.weight",
        "rgb_to_features.x.weight",
        "submodule.layers.0.conv_1.weight",
    ],
)
@pytest.mark.parametrize("beside", ["rgb_converters.0.weight", "final_converter.weight"])
def test_names_of_neither_network_are_refused(name: str, beside: str) -> None:
    with pytest.raises(CheckpointError, match="is not the name of a weight of BMSG-GAN"):
        convert_state_dict({beside: torch.zeros(1), name: torch.zeros(1)})


@given(names=st.lists(st.text(max_size=30), min_size=1, max_size=3))
@settings(deadline=None, max_examples=200)
def test_any_other_name_is_refused_in_one_way(names: list[str]) -> None:
    with pytest.raises(CheckpointError):
        convert_state_dict(dict.fromkeys(names, torch.zeros(1)))


# The way back


@st.composite
def networks(draw: st.DrawFn) -> Generator | Discriminator:
    """Either network, as deep and as wide as is quick."""
    depth = draw(st.integers(1, 8))
    width = draw(st.sampled_from([size for size in (2, 4, 8, 16) if size >= 2 ** max(0, depth - 4)]))
    network = draw(st.sampled_from([Generator, Discriminator]))
    return network(depth, width, equalized=draw(st.booleans()))


@given(network=networks(), data_parallel=st.booleans())
@settings(deadline=None, max_examples=40)
def test_what_is_converted_back_converts_to_the_same(network: Generator | Discriminator, data_parallel: bool) -> None:
    ours = network.state_dict()
    there_and_back = convert_state_dict(to_legacy_state_dict(ours, data_parallel=data_parallel))
    assert list(there_and_back) == list(ours)
    assert all(there_and_back[name] is tensor for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("network", "names", "wrapped"), [(Generator, GENERATOR, in_front), (Discriminator, DISCRIMINATOR, in_the_middle)]
)
def test_our_names_become_the_originals_as_a_cpu_and_as_a_gpu_saves_them(
    network: type[Generator | Discriminator], names: dict[str, str], wrapped: Callable[[str], str]
) -> None:
    def wrapped_where_it_is(name: str) -> str:
        return name if name.startswith("final_") else wrapped(name)

    ours = network(4, 8).state_dict()
    assert to_legacy_state_dict(ours).keys() == originals(ours, names, plain).keys()
    on_gpu = to_legacy_state_dict(ours, data_parallel=True)
    assert on_gpu.keys() == originals(ours, names, wrapped_where_it_is).keys()


@pytest.mark.parametrize("name", ["bmsg_gan_32px", "bmsg_gan_32px_plain"])
@pytest.mark.parametrize("prefix", ["before.generator.", "before.discriminator.", "after.ema."])
def test_the_originals_own_weights_come_back_under_their_own_names(name: str, prefix: str) -> None:
    recorded = load_file(Path(__file__).parent / "golden" / f"{name}.safetensors")
    theirs = {key.removeprefix(prefix): tensor for key, tensor in recorded.items() if key.startswith(prefix)}
    assert theirs
    back = to_legacy_state_dict(convert_state_dict(theirs))
    assert list(back) == list(theirs)
    assert all(back[key] is tensor for key, tensor in theirs.items())


@pytest.mark.parametrize("name", ["", "layers.0.conv_1.weight", "from_rgb.x.weight", "module.last.conv_1.bias"])
@pytest.mark.parametrize("beside", ["to_rgb.0.weight", "last.conv_1.weight"])
def test_names_that_are_not_ours_are_refused(name: str, beside: str) -> None:
    with pytest.raises(CheckpointError, match="is not the name of a weight of our networks"):
        to_legacy_state_dict({beside: torch.zeros(1), name: torch.zeros(1)})


@pytest.mark.parametrize(("name", "equalized"), [("bmsg_gan_32px", True), ("bmsg_gan_32px_plain", False)])
def test_an_imported_generator_is_a_run_with_the_same_images(tmp_path: Path, name: str, equalized: bool) -> None:
    recorded = load_file(Path(__file__).parent / "golden" / f"{name}.safetensors")
    weights = {key.removeprefix("after.ema."): tensor.float() for key, tensor in recorded.items() if "after.ema" in key}
    torch.save(weights, tmp_path / "GAN_GEN_SHADOW_12.pth")

    path = import_generator(tmp_path / "GAN_GEN_SHADOW_12.pth", tmp_path / "runs" / "old")

    assert path == tmp_path / "runs" / "old"
    run, generator = Run(path), load_generator(path)
    assert (generator.depth, generator.latent_size, generator.equalized) == (4, 16, equalized)
    assert run.config is not None
    assert (run.config.resolution, run.config.latent_size, run.config.equalized) == (32, 16, equalized)
    assert run.state is not None
    assert run.state.state == "completed"
    theirs = Generator(4, 16, equalized=equalized)
    theirs.load_state_dict(convert_state_dict(weights))
    assert all(
        torch.equal(ours, other)
        for ours, other in zip(
            generate(generator, latents_of([5], 16)), generate(theirs, latents_of([5], 16)), strict=True
        )
    )
    assert [path.name for path in Sampler(path, SampleOptions(seeds=(5,), files=True)).run()] == ["seed000005_32px.png"]
    assert run.images([5]).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("equalized", [True, False])
@pytest.mark.parametrize(("depth", "latent_size"), [(1, 2), (3, 4), (6, 64), (7, 8)])
def test_depth_latent_size_and_equalized_are_read_from_the_weights(
    tmp_path: Path, depth: int, latent_size: int, equalized: bool
) -> None:
    save_legacy(tmp_path / "a.pth", Generator(depth, latent_size, equalized=equalized).state_dict())
    generator = load_generator(import_generator(tmp_path / "a.pth", tmp_path / "run"))
    assert (generator.depth, generator.latent_size, generator.equalized) == (depth, latent_size, equalized)


def test_equalized_can_be_specified(tmp_path: Path) -> None:
    save_legacy(tmp_path / "a.pth", Generator(2, 8, equalized=True).state_dict())
    assert not load_generator(import_generator(tmp_path / "a.pth", tmp_path / "run", equalized=False)).equalized


def test_an_import_into_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    save_legacy(tmp_path / "a.pth", Generator(2, 8).state_dict())
    import_generator(tmp_path / "a.pth", tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    for folder in (tmp_path / "run", tmp_path, tmp_path / "a.pth"):
        with pytest.raises(RunFolderError, match=re.escape(str(folder))):
            import_generator(tmp_path / "a.pth", folder)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "weights",
    [
        to_legacy_state_dict(Discriminator(3, 8).state_dict()),
        {"rgb_converters.0.weight": torch.zeros(3, 8, 1, 1)},
        {**to_legacy_state_dict(Generator(2, 8).state_dict()), "layers.0.conv_1.bias": torch.zeros(4)},
        {**to_legacy_state_dict(Generator(1, 8).state_dict()), "layers.0.conv_1.weight": torch.zeros(6, 6, 4, 4)},
    ],
)
def test_what_is_not_a_whole_generator_is_not_imported(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        import_generator(tmp_path / "a.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_does_not_overwrite_an_imported_generator(tmp_path: Path) -> None:
    save_legacy(tmp_path / "a.pth", Generator(2, 8).state_dict())
    path = import_generator(tmp_path / "a.pth", tmp_path / "run")
    before = (path / "generator.safetensors").read_bytes()
    trainer = Trainer(TrainConfig(), data=save_images(tmp_path / "images", 40, 8), run_dir=path)
    with pytest.raises(RunFolderError, match="has a generator but no checkpoint"):
        trainer.run()
    assert (path / "generator.safetensors").read_bytes() == before
    assert Run(path).state == state_of(RunFolder(path))
    assert state_of(RunFolder(path)).state == "completed"  # type: ignore[union-attr]


@pytest.mark.parametrize("data_parallel", [True, False])
def test_a_saved_file_has_only_tensors_and_loads_again(tmp_path: Path, data_parallel: bool) -> None:
    ours = Generator(4, 8).state_dict()
    path = tmp_path / "GAN_GEN_SHADOW_1.pth"
    save_legacy(path, ours, data_parallel=data_parallel)
    saved = torch.load(path, weights_only=True)
    assert type(saved) is dict
    assert saved.keys() == to_legacy_state_dict(ours, data_parallel=data_parallel).keys()
    loaded = load_legacy(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ours.items())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_part_of_a_larger_tensor_is_saved_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "GAN_GEN_1.pth"
    save_legacy(path, {"to_rgb.0.weight": torch.zeros(1000, 1000)[:2, :2]})
    assert path.stat().st_size < 10_000


# Files with code in them


class Executes:
    """Pickles as a call: whoever unpickles it makes the call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def hostile(function: str, witness: Path) -> Executes:
    """Something that leaves a file behind when it is unpickled."""
    writes = f"open({str(witness)!r}, 'w').close()"
    return {
        "os.system": lambda: Executes(os.system, f"touch '{witness}'"),
        "eval": lambda: Executes(eval, writes),
        "exec": lambda: Executes(exec, writes),
        "open": lambda: Executes(open, str(witness), "w"),
        "mkdir": lambda: Executes(os.mkdir, str(witness)),
        "getattr": lambda: Executes(getattr, Executes(builtins.__import__, "os"), "system"),
    }[function]()


FUNCTIONS = ("os.system", "eval", "exec", "open", "mkdir", "getattr")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("way", ["plain pickle", "torch, zipped", "torch, old", "among tensors", "as a name"])
def test_a_file_that_holds_code_executes_nothing(tmp_path: Path, function: str, way: str) -> None:
    witness, path = tmp_path / "executed", tmp_path / "GAN_GEN_1.pth"
    call = hostile(function, witness)
    if way == "plain pickle":
        path.write_bytes(pickle.dumps(call, protocol=2))
    elif way == "among tensors":
        torch.save({"layers.0.conv_1.weight": torch.zeros(1), "rgb_converters.0.weight": call}, path)
    elif way == "as a name":
        torch.save({call: torch.zeros(1)}, path)
    else:
        torch.save(call, path, _use_new_zipfile_serialization=way == "torch, zipped")
    with pytest.raises(CheckpointError, match="is not a file of weights"):
        load_legacy(path)
    assert not witness.exists()


def test_the_hostile_files_execute_code_with_an_unrestricted_loader(tmp_path: Path) -> None:
    """So that executing nothing says something."""
    for function in ("eval", "mkdir"):
        witness = tmp_path / function
        pickle.loads(pickle.dumps(hostile(function, witness)))  # noqa: S301 - our own call, to see that it is one
        assert witness.exists()


# Files of another kind


def as_text(path: Path) -> None:
    path.write_text("weights")


def as_nothing(path: Path) -> None:
    path.write_bytes(b"")


def as_a_folder(path: Path) -> None:
    path.mkdir()


def as_another_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing of torch")


def as_a_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def as_a_tensor(path: Path) -> None:
    torch.save(torch.zeros(1), path)


def as_numbers(path: Path) -> None:
    torch.save({"rgb_converters.0.weight": 1.0}, path)


def as_an_optimizer(path: Path) -> None:
    torch.save(torch.optim.Adam([torch.zeros(1, requires_grad=True)]).state_dict(), path)


def as_numbered_tensors(path: Path) -> None:
    torch.save({0: torch.zeros(1)}, path)


@pytest.mark.parametrize(
    "write",
    [
        as_text,
        as_nothing,
        as_a_folder,
        as_another_zip,
        as_a_list,
        as_a_tensor,
        as_numbers,
        as_an_optimizer,
        as_numbered_tensors,
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "GAN_DIS_3.pth"
    write(path)
    with pytest.raises(CheckpointError, match=r"GAN_DIS_3\.pth"):
        load_legacy(path)


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_legacy(tmp_path / "GAN_GEN_1.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch's remarks on what is left of the file
def test_mutated_files_load_or_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "GAN_GEN_1.pth"
    state = originals(Generator(4, 2).state_dict(), GENERATOR, plain)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    content, chance = path.read_bytes(), random.Random(2)  # noqa: S311 - the same damage each time
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del changed[chance.randrange(len(changed)) :]
        path.write_bytes(changed)
        try:
            assert all(isinstance(tensor, Tensor) for tensor in load_legacy(path).values())
        except CheckpointError:
            refused += 1
    assert refused > 50
