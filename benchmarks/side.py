"""One version of this project, started by bench.py, which lets it work in turns with another.

    python benchmarks/side.py CHECKOUT count RESOLUTION...
    python benchmarks/side.py CHECKOUT train RESOLUTION LATENT_SIZE IMAGES DEVICE FOLDER

`train` runs the real loop on the images in FOLDER/images. For each line on stdin it takes IMAGES more (rounded up to
whole intervals of penalties), and prints the seconds per image as a line of JSON; at the end of stdin it ends at once.
Only this file and operations.py are those of bench.py's own version.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

sys.path[0], BENCHMARKS = sys.argv[1], sys.path[0]


def count(*resolutions: str) -> None:
    sys.path.append(BENCHMARKS)
    from operations import step_operations  # type: ignore[import-not-found]

    for resolution in resolutions:
        for kind, operations in step_operations(int(resolution)).items():
            counted = {"launched": operations.launched.total(), "synchronizing": operations.synchronizing.total()}
            answer({"resolution": int(resolution), "kind": kind, **counted})


def train(resolution: str, latent_size: str, images: str, device: str, folder: str) -> None:
    import torch

    from msggan import TrainConfig, Trainer

    # The networks of both versions: the default join was `lin-cat` before there were others.
    join = {"join": "lin-cat"} if "join" in TrainConfig.__dataclass_fields__ else {}
    config = TrainConfig(resolution=int(resolution), latent_size=int(latent_size), kimg=1e6, metric_kimg=1e6, **join)
    with open(os.devnull, "w") as nowhere:
        trainer = Trainer(config, data=f"{folder}/images", run_dir=f"{folder}/run", device=device, messages=nowhere)
        batch_size, interval = trainer.config.batch_size, trainer.config.penalty_interval
        steps_per_turn = interval * math.ceil(int(images) / (interval * batch_size))
        step, taken = trainer.step, 0
        began = time.perf_counter()

        def step_in_turns(*batch: torch.Tensor) -> dict[str, torch.Tensor]:
            nonlocal taken, began
            losses = step(*batch)
            taken += 1
            if taken % steps_per_turn == 0:
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize(trainer.device)
                seconds = time.perf_counter() - began
                answer({"seconds": seconds / (steps_per_turn * batch_size), "batch_size": batch_size})
                if not sys.stdin.readline():
                    os._exit(0)
                began = time.perf_counter()
            return losses

        trainer.step = step_in_turns  # type: ignore[method-assign]
        sys.stdin.readline()
        trainer.run()


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201 - it is what bench.py reads


if __name__ == "__main__":
    {"count": count, "train": train}[sys.argv[2]](*sys.argv[3:])
