"""A trained generator as an ONNX model, which makes images without msggan or torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msggan.device import is_out_of_memory
from msggan.errors import ExportError
from msggan.networks import Convolution, Generator, LatentConvolution

if TYPE_CHECKING:
    import onnx

FORMAT_VERSION = 1
OPSET = 18  # the one that torch's exporter targets
IR_VERSION = 8  # of that opset; onnxruntime reads both since 1.14, of February 2023
LARGEST_BYTES = 2**31 - 2**24  # an ONNX file is one protobuf message, which ends at 2 GiB


def build_onnx(generator: Generator, *, scale: int | None = None) -> onnx.ModelProto:
    """The model of a generator, in float32: `latents` (N, L) → `images_4px` (N, 3, 4, 4), `images_8px`, …, for any N.

    The latents have norm √L, and the images are about [-1, 1], as the generator's own; the metadata say both. With
    classes there is a second input, `labels` (N,) int64, the numbers of classes, whose names are in the metadata.
    scale: only the images of this scale of the generator, in pixels. Raises `ExportError` if the weights are too large
    for one file, or torch's exporter fails.
    """
    import onnx

    size = 4 * sum(parameter.numel() for parameter in generator.parameters())
    if size > LARGEST_BYTES:
        raise ExportError(
            f"The generator's weights take {size / 2**30:.1f} GiB, and an ONNX file has at most 2.",
            "Use its generator.safetensors, which msggan.load_generator reads.",
        )
    scales = [4 << level for level in range(generator.depth)] if scale is None else [scale]
    bare = _bare_copy(generator, depth=scales[-1].bit_length() - 2)
    length, classes = generator.latent_size, generator.classes
    network: nn.Module = WithLabels(bare) if classes else bare
    network = network if scale is None else Finest(network)
    model = _exported(network, length, [f"images_{side}px" for side in scales], has_labels=bool(classes))
    _remove_traces(model)
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "resolution": str(2 << generator.depth),
        "latent_size": str(length),
        "scales": ", ".join(map(str, scales)),
        "latents": f"(N, {length}) float32: N vectors of normal numbers, each divided by its norm and multiplied by "
        f"sqrt({length}). The model does not do this itself.",
        "images": "(N, 3, r, r) float32, RGB, about -1 to 1. As pixels: clip to [-1, 1], then (x + 1) * 127.5.",
    }
    if classes:
        metadata["labels"] = f"(N,) int64: the numbers of classes, from 0 to {len(classes) - 1}."
        metadata["classes"] = json.dumps([*classes])
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


class Finest(nn.Module):
    """A generator that returns the finest images alone."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, *inputs: Tensor) -> Tensor:
        """latents: (N, L), and with classes labels: (N,) → (N, 3, R, R)."""
        finest: Tensor = self.generator(*inputs)[-1]
        return finest


class WithLabels(nn.Module):
    """A generator with classes that takes their numbers."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor, labels: Tensor) -> list[Tensor]:
        """latents: (N, L), labels: (N,) int64 → pyramid."""
        is_of_class = labels[:, None] == torch.arange(len(self.generator.classes))
        pyramid: list[Tensor] = self.generator(torch.cat((latents, is_of_class.to(latents.dtype)), dim=1))
        return pyramid


def _bare_copy(generator: Generator, *, depth: int) -> Generator:
    """Its coarsest `depth` scales, on the CPU in float32, with the scales of equalized weights multiplied in."""
    with torch.device("meta"):  # no random weights: they are loaded below
        bare = Generator(
            depth,
            generator.latent_size,
            equalized=generator.equalized,
            resampling=generator.resampling,
            classes=generator.classes,
        )
    weights = generator.state_dict()
    copies = {name: weights[name].to("cpu", torch.float32, copy=True).contiguous() for name in bare.state_dict()}
    bare.load_state_dict(copies, assign=True)
    bare.requires_grad_(False)
    for layer in bare.modules():
        if isinstance(layer, Convolution | LatentConvolution):
            layer.weight.mul_(layer.scale)
            layer.scale = 1.0
    return bare.eval()


def _exported(network: nn.Module, latent_size: int, outputs: Sequence[str], *, has_labels: bool) -> onnx.ModelProto:
    example: tuple[Tensor, ...] = (torch.zeros(2, latent_size),)  # two: torch takes a batch of one for a constant
    if has_labels:
        example += (torch.zeros(2, dtype=torch.int64),)
    dimension = {0: torch.export.Dim("N")}
    shapes: Any = tuple(dimension for _ in example)
    logging_before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter's own logs: deprecations in torch's code, and rewrites it tried
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                example,
                input_names=["latents", "labels"][: len(example)],
                output_names=list(outputs),
                dynamic_shapes=(shapes,) if isinstance(network, Finest) else shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # it raises many kinds, which change with each torch
        if is_out_of_memory(error):
            raise
        raise ExportError(
            f"torch {torch.__version__} could not make an ONNX model ({type(error).__name__}).",
            "Another release may: pip install --upgrade torch onnx onnxscript",
        ) from error
    finally:
        logging.disable(logging_before)
    assert program is not None  # noqa: S101 - None comes from the old exporter only
    return program.model_proto


def _remove_traces(model: onnx.ModelProto) -> None:
    """Removes the exporter's metadata, which includes paths of this machine, and names the batch N."""
    graph = model.graph
    model.ir_version = IR_VERSION  # nothing of a later version is left then
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    graph.ClearField("value_info")
    graph.name = "generator"
