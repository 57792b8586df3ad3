"""Signs of trouble in what a run's evaluations measured, and sentences that say what to change. It loads no torch.

Each sign is a metric, `sign_NAME` in every evaluation: 0 without the sign. The thresholds are outside of what 85 good
runs had: `auto` and its variants on photographs of clothing and on emoji at 32 px, two at 64 px, with batches of 4 to
32, over 20 to 60 kimg, and drawn flowers at 16 px.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

Evaluation = Mapping[str, float]

# D(real) − D(fake), and the discriminator's loss: good runs had at most 4.5 and at least 0.06, one whose discriminator
# learned a thousand times as fast as its generator 9 and 0.0007. WGAN's scores have no scale: its loss is far from 0.
SATURATED_GAP, VANISHING_LOSS, VANISHING_GRADIENT = 8.0, 0.01, 0.001
# Good runs have nearly equal samples in their first few kimg, whose variance falls to 0.03 of the real images' and had
# risen to 0.34 or more by 10 kimg; swd may rise meanwhile. What scales are compared with is also from after that.
EARLY_KIMG = 10.0
COLLAPSED_VARIANCE = 0.1
# Scales differ by 1.4 to 2.5 before training, and by 0.5 to 1.0 at the end of good runs; at 64 px or with twice the
# learning rates by up to 1.5, also more than before.
SCALE_DIFFERENCE, SCALE_GROWTH = 1.75, 1.5
# Of 32 held-out images, the fewest there are, 1 in 200 sets would take so many other real images for copies. Good runs
# on photographs and drawn flowers had none, one whose training images were 8 photographs 0.35.
COPIED_SHARE = 0.15
# Good runs went for at most 0.17 of their length without a lower swd.
STALLED_SHARE, STALLED_EVALUATIONS, IMPROVEMENT = 0.4, 5, 0.01

SENTENCES: Mapping[str, str] = {
    "saturated": "The discriminator recognizes nearly all generated images (D(real) - D(fake) is {gap:.1f}, d_loss "
    "{d_loss:.2g}), which teaches the generator little. Use another name with larger --r1-gamma and --r2-gamma, or a "
    "smaller --d-lr.",
    "collapse": "Generated images are nearly all alike: their variance is {variance_ratio:.2f} of the real images'. "
    "Use another name with a smaller --g-lr, or larger --r1-gamma and --r2-gamma. The best weights so far: sample "
    "--best.",
    "scales": "The scales of a sample show different images, more than before (scale_difference is "
    "{scale_difference:.2f}). Use another name with smaller --g-lr and --d-lr. The best weights so far: sample --best.",
    "memorising": "The generator learns training images by heart: {copies:.2f} of its images are nearer to one than 99 "
    "% of the held-out images. Add images, or use another name with --augment fixed or a smaller --kimg. The best "
    "weights so far: sample --best.",
    "stalled": "swd has not improved at any scale for {sign_stalled:g} kimg. Training longer will hardly help: use the "
    "best weights (sample --best), add images, or try another --recipe or --r1-gamma.",
}


def judge(evaluations: Sequence[Evaluation], *, total_images: float) -> dict[str, float]:
    """The signs at the last evaluation: 1 or 0, of `stalled` the thousands of images since swd improved.

    evaluations: the reports that have a swd, in order, one or more. total_images: the length of the run.
    """
    last_two = evaluations[-2:]
    late = [each for each in evaluations if each["kimg"] >= EARLY_KIMG]
    has = {
        "saturated": len(last_two) == 2 and all(map(_is_saturated, last_two)),
        "collapse": len(late) >= 2 and all(each.get("variance_ratio", 1.0) < COLLAPSED_VARIANCE for each in late[-2:]),
        "memorising": len(late) >= 2 and all(each.get("copies", 0.0) >= COPIED_SHARE for each in late[-2:]),
        "scales": len(late) >= 3 and all(_has_drifted(each, late) for each in late[-2:]),
    }
    return {
        **{f"sign_{name}": float(present) for name, present in has.items()},
        "sign_stalled": _kimg_stalled(evaluations, total_images),
    }


def sentences(values: Mapping[str, object]) -> dict[str, str]:
    """A sentence for each sign among the newest values of a run's metrics, by its name."""
    numbers = defaultdict(float, {name: value for name, value in values.items() if isinstance(value, int | float)})
    numbers["gap"] = numbers["d_real"] - numbers["d_fake"]
    return {name: text.format_map(numbers) for name, text in SENTENCES.items() if numbers[f"sign_{name}"]}


def _is_saturated(evaluation: Evaluation) -> bool:
    if not {"d_real", "d_fake", "d_loss", "g_gradient_norm"} <= evaluation.keys():
        return False
    is_vanishing = abs(evaluation["d_loss"]) < VANISHING_LOSS or evaluation["g_gradient_norm"] < VANISHING_GRADIENT
    return evaluation["d_real"] - evaluation["d_fake"] > SATURATED_GAP and is_vanishing


def _has_drifted(evaluation: Evaluation, others: Sequence[Evaluation]) -> bool:
    difference = evaluation.get("scale_difference", 0.0)
    lowest = min(each.get("scale_difference", difference) for each in others)
    return difference > max(SCALE_DIFFERENCE, SCALE_GROWTH * lowest)


def _kimg_stalled(evaluations: Sequence[Evaluation], total_images: float) -> float:
    lowest, improved_at = dict[str, float](), 0
    for index, evaluation in enumerate(evaluations):
        distances = {name: value for name, value in evaluation.items() if name.startswith("swd")}
        lower = {
            name: value
            for name, value in distances.items()
            if name not in lowest or value < (1 - IMPROVEMENT) * lowest[name]
        }
        if lower:
            lowest |= lower
            improved_at = index
    now = evaluations[-1]["kimg"]
    since = now - evaluations[improved_at]["kimg"]
    is_long = now >= EARLY_KIMG and len(evaluations) - 1 - improved_at >= STALLED_EVALUATIONS
    return since if is_long and 1000 * since >= STALLED_SHARE * total_images else 0.0
