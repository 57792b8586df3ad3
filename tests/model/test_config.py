"""TrainConfig: valid values are accepted, every invalid one is named, and resolving is final."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.configurations import configs

from msggan.config import (
    RECIPES,
    Range,
    TrainConfig,
    changed_for_resume,
    depth_of,
    explain,
    explicit_values,
    field_types,
    flag,
    parse,
    problems_of,
    resolve,
    smallest_latent_size,
)
from msggan.errors import UsageError
from msggan.losses import LOSSES

NAMES = [spec.name for spec in fields(TrainConfig)]
BY_NAME = {spec.name: spec for spec in fields(TrainConfig)}
RESUMABLE = {
    "kimg",
    "micro_batch",
    "sample_kimg",
    "metric_kimg",
    "checkpoint_kimg",
    "snapshot_kimg",
    "best_by",
    "num_samples",
}


def resolved(config: TrainConfig, **given: Any) -> TrainConfig:
    return resolve(config, **{"shorter_side_px": 64, "device": "cpu", "has_fast_bfloat16": False, **given})


def attempt(build: Callable[[], TrainConfig]) -> tuple[TrainConfig | None, tuple[str, ...]]:
    """The configuration, or why there is none."""
    try:
        return build(), ()
    except UsageError as error:
        return None, error.problems


def problems_in(texts: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(UsageError) as raised:
        parse(texts)
    return raised.value.problems


def test_a_configuration_may_have_no_values() -> None:
    assert parse(dict.fromkeys(NAMES)) == TrainConfig()
    assert explicit_values(TrainConfig()) == {}


@settings(max_examples=30, deadline=None)
@given(configs())
def test_the_texts_of_a_configuration_parse_to_it(config: TrainConfig) -> None:
    texts = {name: value if isinstance(value, bool) else str(value) for name, value in explicit_values(config).items()}
    assert parse(texts) == config


@settings(max_examples=30, deadline=None)
@given(configs())
def test_a_good_configuration_has_no_problems(config: TrainConfig) -> None:
    assert problems_of(asdict(config)) == []


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.text() | st.integers().map(str) | st.floats().map(str)))
def test_any_text_is_parsed_or_rejected_with_its_flag(texts: dict[str, str]) -> None:
    taken, problems = attempt(lambda: parse(texts))
    assert all(problem.startswith(tuple(flag(name) for name in texts)) for problem in problems)
    assert taken is None or explicit_values(taken).keys() == texts.keys()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("resolution", "48", "must be a power of two; the nearest are 32 and 64."),
        ("resolution", "2", "must be 4 or more, at most 1024."),
        ("resolution", "64.0", "is not a whole number."),
        ("resolution", "1" + "0" * 400, "must be 4 or more, at most 1024."),
        ("latent_size", "100", "must be a power of two; the nearest are 64 and 128."),
        ("batch_size", "0", "must be 1 or more, at most 65536."),
        ("kimg", "0", "must be more than 0."),
        ("kimg", "-1", "must be more than 0."),
        ("kimg", "nan", "must be more than 0."),
        ("kimg", "inf", "must be more than 0."),
        ("kimg", "long", "is not a number."),
        ("seed", "-1", "must be 0 or more, at most 2147483647."),
        ("mirror", "no", "is not true or false."),
        ("background", "pink", "must be white, black, grey or #rrggbb."),
        ("background", "#12345", "must be white, black, grey or #rrggbb."),
        ("loss", "hinges", f"must be one of {', '.join(LOSSES)}. Did you mean hinge?"),
        ("recipe", "bmgs", f"must be one of {', '.join(RECIPES)}. Did you mean bmsg?"),
        ("precision", "float16", "must be one of auto, float32, bfloat16, float64. Did you mean bfloat16?"),
    ],
)
def test_an_invalid_value_is_reported_with_the_valid_ones(name: str, text: str, complaint: str) -> None:
    assert problems_in({name: text}) == (f"{flag(name)} {text}: {complaint}",)


def test_all_invalid_values_are_reported_at_once() -> None:
    problems = problems_in({"resolution": "48", "kimg": "long", "loss": "none", "seed": "1"})
    assert sorted(problem.split()[0] for problem in problems) == ["--kimg", "--loss", "--resolution"]


def test_conflicting_values_are_reported() -> None:
    problems = problems_in(
        {"resolution": "1024", "latent_size": "16", "batch_size": "12", "stddev_group": "5"}
        | {"augment_strength": "0.3"}
    )
    assert problems == (
        "--latent-size 16: too small for --resolution 1024, which needs 32 or more.",
        "--augment-strength 0.3: needs --augment fixed or adaptive.",
        "--stddev-group 5: must divide --batch-size 12.",
    )


@pytest.mark.parametrize(
    "values",
    [{"resolution": "64"}, {"resolution": 64.0}, {"mirror": 1}, {"kimg": True}, {"kimg": 10**400}, {"seed": math.nan}],
    ids=str,
)
def test_values_of_another_type_or_beyond_all_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**values)


def test_an_integer_is_accepted_for_a_float_field() -> None:
    assert TrainConfig(kimg=20) == TrainConfig(kimg=20.0)


def test_a_range_includes_its_bounds_as_declared() -> None:
    assert [n in Range(0, 1) for n in (0, 1, -0.1, 1.1)] == [True, True, False, False]
    assert [n in Range(0, 1, low_included=False) for n in (0, 1e-300)] == [False, True]
    assert not any(other in Range(0, 1) for other in ("1", None, math.nan))


@pytest.mark.parametrize(("resolution", "depth"), [(4, 1), (8, 2), (64, 5), (1024, 9)])
def test_depth_counts_the_scales_from_four_pixels_up(resolution: int, depth: int) -> None:
    assert depth_of(resolution) == depth
    assert TrainConfig(resolution=resolution).depth == depth


@pytest.mark.parametrize(("resolution", "size"), [(4, 2), (32, 2), (64, 2), (128, 4), (1024, 32)])
def test_the_smallest_latent_leaves_the_finest_level_a_channel(resolution: int, size: int) -> None:
    assert smallest_latent_size(resolution) == size


@settings(max_examples=30, deadline=None)
@given(configs(), st.integers(1, 5000), st.sampled_from(["cpu", "cuda", "mps"]), st.booleans())
def test_resolve_fills_every_field_keeps_explicit_values_and_is_idempotent(
    config: TrainConfig, side: int, device: str, fast: bool
) -> None:
    result, problems = attempt(lambda: resolve(config, shorter_side_px=side, device=device, has_fast_bfloat16=fast))
    if result is None:  # explicit values may not fit those filled in
        assert all(problem.startswith(("--latent-size", "--stddev-group")) for problem in problems)
        return
    assert all(value is not None for value in asdict(result).values())
    kept = explicit_values(config)
    if kept.get("precision") == "auto":
        del kept["precision"]
    assert kept.items() <= asdict(result).items()
    assert result.precision != "auto"
    assert resolve(result, shorter_side_px=8, device="cuda", has_fast_bfloat16=not fast) == result


@pytest.mark.parametrize(
    ("side", "device", "resolution"),
    [(1, "cpu", 4), (31, "cpu", 16), (2000, "cpu", 32), (100, "cuda", 64), (2000, "cuda", 256), (2000, "mps", 256)],
)
def test_the_resolution_follows_the_images_and_the_device(side: int, device: str, resolution: int) -> None:
    assert resolved(TrainConfig(), shorter_side_px=side, device=device).resolution == resolution


@pytest.mark.parametrize(
    ("device", "resolution", "images", "batch_size"),
    [
        ("cpu", 32, 100_000, 16),
        ("cpu", 64, 1000, 16),
        ("cpu", 128, 1000, 8),
        ("cpu", 1024, 1000, 4),
        ("cuda", 32, 100_000, 32),
        ("cuda", 128, 256, 32),
        ("cuda", 128, 255, 16),
        ("cuda", 256, 100_000, 16),
        ("mps", 64, 24, 4),
        ("cuda", 64, 1, 4),
    ],
)
def test_the_batch_follows_the_device_and_is_an_eighth_of_the_images_at_most(
    device: str, resolution: int, images: int, batch_size: int
) -> None:
    config = resolved(TrainConfig(resolution=resolution), device=device, images=images)
    assert config.batch_size == batch_size


@pytest.mark.parametrize(
    ("batch_size", "rate", "beta2"),
    [(1, 0.001, 0.99**0.25), (4, 0.002, 0.99), (16, 0.004, 0.99**4), (64, 0.008, 0.99**16)],
)
def test_rates_of_auto_grow_with_the_square_root_of_its_batch(batch_size: int, rate: float, beta2: float) -> None:
    config = resolved(TrainConfig(batch_size=batch_size))
    assert (config.g_lr, config.d_lr, config.beta2) == (rate, rate, pytest.approx(beta2, rel=1e-15))
    r3 = resolved(TrainConfig(recipe="r3", batch_size=batch_size))
    assert (r3.g_lr, r3.d_lr, r3.beta2, r3.beta2_final) == (rate, rate, 0.9, 0.99)
    assert resolved(TrainConfig(recipe="bmsg", batch_size=batch_size)).g_lr == RECIPES["bmsg"]["g_lr"]
    assert resolved(TrainConfig(batch_size=batch_size, d_lr=0.5, beta2=0.5)).beta2 == 0.5


@pytest.mark.parametrize(
    ("asked", "images", "explained"),
    [
        (
            {},
            1000,
            "Recipe auto: batches of 16 (cpu, 32 px), learning rate 0.004 (for such batches), latent size 64 (for ",
        ),
        (
            {"recipe": "r3", "latent_size": 32},
            40,
            "Recipe r3: batches of 4 (an eighth of 40 images), learning rate 0.002",
        ),
        ({"batch_size": 4, "d_lr": 0.1}, 1000, "Recipe auto: latent size 64 (for 32 px)."),
        ({"batch_size": 4, "d_lr": 0.1, "latent_size": 32}, 1000, ""),
        ({"recipe": "bmsg"}, 1000, ""),
    ],
)
def test_a_recipe_explains_what_it_has_chosen(asked: dict[str, Any], images: int, explained: str) -> None:
    config = TrainConfig(resolution=32, **asked)
    text = explain(config, resolved(config, images=images), device="cpu", images=images)
    assert text.startswith(explained)
    assert bool(text) == bool(explained)


@pytest.mark.parametrize(("fast", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_follows_the_processor(fast: bool, precision: str) -> None:
    assert resolved(TrainConfig(precision="auto"), has_fast_bfloat16=fast).precision == precision


def test_intervals_are_a_twentieth_of_the_run_and_checkpoints_at_most_twenty_kimg_apart() -> None:
    config = resolved(TrainConfig(kimg=1000))
    assert (config.sample_kimg, config.metric_kimg, config.checkpoint_kimg) == (50, 50, 20)


def test_intervals_of_a_short_run_are_a_thousand_images() -> None:
    config = resolved(TrainConfig(kimg=4))
    assert (config.sample_kimg, config.metric_kimg, config.checkpoint_kimg) == (1, 1, 1)


def test_the_original_average_keeps_its_decay_at_every_batch_size() -> None:
    for batch_size in (4, 32):
        config = resolved(TrainConfig(recipe="bmsg", batch_size=batch_size))
        assert 0.5 ** (batch_size / 1000 / config.ema_half_life_kimg) == pytest.approx(0.999)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fills_only_unset_fields(recipe: str) -> None:
    config = resolved(TrainConfig(recipe=recipe, g_lr=0.5))
    wanted: dict[str, Any] = {**RECIPES[recipe], "g_lr": 0.5, "precision": config.precision}
    assert asdict(config).items() >= wanted.items()


@settings(max_examples=30, deadline=None)
@given(configs())
def test_resuming_applies_fields_that_may_change_and_names_the_others(requested: TrainConfig) -> None:
    stored = resolved(TrainConfig(kimg=30, sample_kimg=7, metric_kimg=8, checkpoint_kimg=9))
    config, refused = changed_for_resume(stored, requested)
    for name in NAMES:
        old, new = getattr(stored, name), getattr(requested, name)
        differs = new is not None and new != old and (name, new) != ("precision", "auto")
        assert (name in refused) == (differs and name not in RESUMABLE)
        assert getattr(config, name) == (new if differs and name in RESUMABLE else old)


@settings(max_examples=30, deadline=None)
@given(configs(), st.floats(0.001, 10_000))
def test_the_intervals_of_a_resumed_run_follow_kimg_unless_they_were_given(requested: TrainConfig, kimg: float) -> None:
    """One that was given the default value by name is taken for the default: only the values are stored."""
    stored, problems = attempt(lambda: resolved(requested))
    assume(not problems)
    assert stored is not None
    config, _ = changed_for_resume(stored, TrainConfig(kimg=kimg))
    default, fresh = resolved(TrainConfig(kimg=stored.kimg)), resolved(TrainConfig(kimg=kimg))
    for name in ("sample_kimg", "metric_kimg", "checkpoint_kimg"):
        is_default = getattr(stored, name) == getattr(default, name)
        assert getattr(config, name) == getattr(fresh if is_default else stored, name)


def test_the_intervals_of_a_short_run_that_is_extended_grow_with_kimg() -> None:
    long, _ = changed_for_resume(resolved(TrainConfig(kimg=0.05, sample_kimg=0.01)), TrainConfig(kimg=1000))
    assert (long.sample_kimg, long.metric_kimg, long.checkpoint_kimg) == (0.01, 50, 20)


@settings(max_examples=30, deadline=None)
@given(configs())
def test_resuming_with_the_same_configuration_changes_nothing(requested: TrainConfig) -> None:
    stored, _ = attempt(lambda: resolved(requested))
    assume(stored is not None)
    assert stored is not None
    assert changed_for_resume(stored, requested) == (stored, [])
    assert changed_for_resume(stored, TrainConfig()) == (stored, [])


def test_the_fields_that_may_change_are_the_documented_ones() -> None:
    assert {name for name in NAMES if BY_NAME[name].metadata["may_change"]} == RESUMABLE


def test_every_field_is_a_plain_optional_value_with_a_help() -> None:
    assert set(field_types().values()) <= {str, int, float, bool}
    assert all(spec.metadata["help"].endswith(".") for spec in fields(TrainConfig))
    assert all(value is None for value in asdict(TrainConfig()).values())


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(UsageError):
        replace(TrainConfig(), kimg=-1.0)
