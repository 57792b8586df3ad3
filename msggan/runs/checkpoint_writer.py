"""How does a run save itself while it goes on? A copy is taken at the step, and a thread beside it writes the files.

The copy takes as much memory on the CPU as the run's tensors do on their device, from the step until it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from msggan.runs.checkpoint import copy_of, prune_checkpoints, save_checkpoint, save_generator
from msggan.runs.folder import RunFolder


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time.

    may_write: called by the thread before a checkpoint becomes visible; raises where the run is no longer ours.
    """

    def __init__(self, folder: RunFolder, *, may_write: Callable[[], None]) -> None:
        self.folder = folder
        self.may_write = may_write
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self, images_seen: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, config: Mapping[str, Any]
    ) -> None:
        """Copies everything and begins to write it; first waits for the checkpoint before, and raises as `finish` does.

        tensors: as `TrainingState.tensors` names them; the average among them becomes generator.safetensors too.
        """
        self.finish()
        copies = copy_of(tensors)
        self._thread = threading.Thread(
            target=self._write, args=(images_seen, copies, dict(state), dict(config)), name="checkpoint"
        )
        self._thread.start()

    def finish(self) -> None:
        """Waits for what is being written. Raises what went wrong with it: `OSError` as the disk does."""
        self.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Waits for what is being written, however it goes."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self, images_seen: int, tensors: dict[str, Tensor], state: dict[str, Any], config: dict[str, Any]
    ) -> None:
        """The weights first: what dies in between does this step again, and writes the same weights again."""
        try:
            average = {name.removeprefix("ema."): t for name, t in tensors.items() if name.startswith("ema.")}
            self.may_write()
            save_generator(self.folder.generator, average, config)
            self.may_write()
            save_checkpoint(self.folder.checkpoints, images_seen, tensors, state)
            prune_checkpoints(self.folder.checkpoints, newest=images_seen)
        except Exception as error:
            self._error = error
