"""CUDA graphs: the operations of a step, recorded once and then launched together.

A step launches hundreds of small operations. One by one, launching them may take the host longer than computing them
takes the device. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

WARM_UP = 3
"""Calls of each kind before it is recorded: in the first, libraries choose algorithms and allocate what they keep."""

Function = Callable[..., Tensor]


class Graphs:
    """A function(kind, *inputs) on a CUDA device, recorded for each of a few kinds and then replayed.

    The function launches the same operations at each call of a kind, does not wait for the device, copies nothing from
    or to the host, and may change only tensors that stay where they are. Its inputs always have the same shapes.
    inform: if it cannot be recorded, is called with a sentence; the function then runs as usual.
    """

    def __init__(self, kinds: Iterable[bool], device: torch.device, inform: Callable[[str], None]) -> None:
        self.device, self.inform = device, inform
        self.calls = dict.fromkeys(kinds, 0)
        self.stream = recording_stream(device)
        self.inputs: list[Tensor] = []
        self.recorded: dict[bool, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.can_record = True

    def __call__(self, function: Function, kind: bool, *inputs: Tensor) -> Tensor:
        """function(kind, *inputs), the same function at each call. Later calls do not change the result."""
        if self.can_record and not self.recorded and min(self.calls.values()) >= WARM_UP:
            self._record(function, inputs)
        if not self.recorded:
            self.calls[kind] += 1
            return self._run(function, kind, *inputs)
        torch._foreach_copy_(self.inputs, list(inputs))
        graph, output = self.recorded[kind]
        graph.replay()
        return output.clone()

    def _run(self, function: Function, kind: bool, *inputs: Tensor) -> Tensor:
        """As usual, but on the stream of the recordings, because some of what PyTorch keeps belongs to a stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            output = function(kind, *inputs)
        current.wait_stream(self.stream)
        return output

    def _record(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        """Records all kinds, which computes nothing. They share memory, because only one runs at a time."""
        self.inputs = [torch.empty_like(each) for each in inputs]
        pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(torch.cuda.current_stream(self.device)):  # restores it, also if recording fails
                for kind in self.calls:
                    graph = torch.cuda.CUDAGraph()
                    # thread_local: other threads may allocate pinned memory for batches meanwhile.
                    with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                        output = function(kind, *self.inputs)
                    self.recorded[kind] = graph, output
        except RuntimeError as error:  # out of memory, or something that cannot be recorded
            self.recorded.clear()
            self.can_record = False
            reason = str(error).strip().splitlines()[0].rstrip(".")
            self.inform(f"CUDA graphs are not used ({reason}): steps may be slower, with the same results.")


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings of a process: cuBLAS keeps 32 MiB for each stream that it has worked on."""
    return torch.cuda.Stream(device)
