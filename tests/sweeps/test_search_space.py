"""--over is parsed by the type of its field, and what cannot be tried is refused before anything starts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msggan.config import TrainConfig
from msggan.errors import UsageError
from msggan.metrics import Patches, distances
from orchestration.sweeps.space import SWEEPABLE, Choice, Interval, SearchSpace, read_space
from orchestration.sweeps.spec import SAMPLINGS, SweepSpec, default_trials, objective_problems
from orchestration.sweeps.trials import Objective

ANY = TrainConfig()
SCALES = ["swd", *(f"swd_{1 << power}" for power in range(2, 11))]


def problems_with(*texts: str, config: TrainConfig = ANY) -> list[str]:
    with pytest.raises(UsageError) as refused:
        read_space(texts, config)
    return list(refused.value.problems)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("g_lr", Interval("g_lr", 0.0005, 0.01, log=True)),
        ("--g-lr=0.001..0.01", Interval("g_lr", 0.001, 0.01, log=True)),
        ("beta2=0.9..0.99", Interval("beta2", 0.9, 0.99, log=False)),
        ("batch_size=4..20", Choice("batch_size", (4, 8, 16))),
        ("batch_size=5..16", Choice("batch_size", (8, 16))),
        ("batch-size=6,12", Choice("batch_size", (6, 12))),
        ("seed=0..3", Choice("seed", (0, 1, 2, 3))),
        ("penalty_interval=1..16", Choice("penalty_interval", (1, 2, 4, 8, 16))),
        ("penalty_interval=1,4", Choice("penalty_interval", (1, 4))),
        ("mirror", Choice("mirror", (True, False))),
        ("equalized=false,true", Choice("equalized", (False, True))),
        ("loss=hinge,wgan-gp", Choice("loss", ("hinge", "wgan-gp"))),
    ],
)
def test_a_dimension_is_parsed_by_the_type_of_its_field(text: str, dimension: Choice | Interval) -> None:
    assert read_space([text], ANY) == SearchSpace((dimension,))


@pytest.mark.parametrize("name", [name for name in SWEEPABLE if name not in ("seed", "penalty_interval")])
def test_every_default_range_round_trips_through_its_text(name: str) -> None:
    config = TrainConfig(augment="fixed") if name == "augment_strength" else ANY
    space = read_space([name], config)
    assert read_space(space.as_texts(), config) == space


def test_a_range_that_needs_another_option_is_refused_without_it() -> None:
    with pytest.raises(
        UsageError, match=r"--augment-strength 0\.1: needs --augment fixed or adaptive\. The sweep would"
    ):
        read_space(["augment_strength"], ANY)
    with pytest.raises(UsageError, match="needs --augment fixed or adaptive"):
        read_space(["augment_strength", "augment"], ANY)
    assert read_space(["augment_strength", "augment=fixed,adaptive"], ANY)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("g_lr", None, "g_lr"),
        ("g_lr", (0.001, 0.01), "g_lr=0.001..0.01"),
        ("seed", (0, 3), "seed=0..3"),
        ("penalty_interval", [1, 4], "penalty_interval=1,4"),
        ("mirror", [True, False], "mirror=true,false"),
        ("loss", ["hinge"], "loss=hinge"),
    ],
)
def test_a_mapping_gives_the_same_space_as_its_text(name: str, values: object, text: str) -> None:
    assert read_space({name: values}, ANY) == read_space([text], ANY)


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        ({"glr": None}, "--over glr: there is no option --glr. Did you mean g_lr?"),
        ({"g_lr": (0.01, 0.001)}, "--over g_lr=0.01..0.001: 0.01 is not below 0.001."),
        ({"seed": []}, "--over seed=: has no values; as in seed=1,2,3."),
        ({"g_lr": 0.01}, "--over g_lr: 0.01 is not None, a tuple (low, high) or a list of values."),
        ({"loss": "hinge"}, "--over loss: 'hinge' is not None, a tuple (low, high) or a list of values."),
        ({}, "--over: is required."),
    ],
)
def test_an_invalid_mapping_has_the_message_of_the_option(over: dict[str, object], problem: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_space(over, ANY)
    assert [found.startswith(problem) for found in refused.value.problems] == [True]


@given(st.floats(1e-6, 1.0), st.floats(1.01, 1e3))
def test_an_interval_round_trips_to_twelve_digits(low: float, high: float) -> None:
    (dimension,) = read_space([f"r1_gamma={low:.12g}..{high:.12g}"], ANY).dimensions
    assert isinstance(dimension, Interval)
    assert read_space([str(dimension)], ANY).dimensions == (dimension,)
    assert (dimension.low, dimension.high) == (float(f"{low:.12g}"), float(f"{high:.12g}"))


@pytest.mark.parametrize(("interval", "drift"), [(1, 1.0), (4, 0.5), (16, 0.25)])
def test_a_larger_penalty_interval_weakens_a_penalty_under_adam(interval: int, drift: float) -> None:
    """Why `penalty_interval` has no default range: it trades strength for speed, by one over its square root.

    A penalty that outweighs the rest, with Adam as the recipes set it: the mean step, in learning rates.
    """
    steps, rate = 4096, 0.001
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=rate, betas=(0.0, 0.99))
    for step in range(steps):
        rest = 1.0 if step % 2 else -1.0
        weight.grad = torch.full_like(weight, rest + (1000.0 * interval if step % interval == 0 else 0.0))
        adam.step()
    assert -weight.item() / (steps * rate) == pytest.approx(drift, rel=0.05)


def test_the_combinations_of_a_grid_change_the_last_field_fastest() -> None:
    space = read_space(["loss=hinge,lsgan", "seed=1,2"], ANY)
    assert [tuple(settings.values()) for settings in space.combinations()] == [
        ("hinge", 1),
        ("hinge", 2),
        ("lsgan", 1),
        ("lsgan", 2),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("glr", "there is no option --glr. Did you mean g_lr?"),
        ("kimg", "--kimg cannot be searched"),
        ("g_lr=0.01..0.001", "0.01 is not below 0.001. Did you mean g_lr=0.001..0.01?"),
        ("g_lr=1..inf", "inf is not a number"),
        ("g_lr=0.001..", "an empty value is not a number; as in g_lr=0.001,0.003."),
        ("seed=1.5,2", "1.5 is not a whole number; as in seed=1,2,3."),
        ("g_lr=0.01..0.01", "0.01 is not below 0.01."),
        ("g_lr=", "has no values"),
        ("g_lr=0.1,,0.2", "has an empty value"),
        ("seed=1,1", "has a value twice"),
        ("seed", "has no default range"),
        ("penalty_interval", "has no default range; list values, as in penalty_interval=1,2,3."),
        ("r1_gamma=0..10", "so LOW must be above 0"),
        ("loss=hinge..wgan-gp", "is not a number"),
        ("loss=hinge,nonsense", "must be one of"),
        ("mirror=yes,no", "yes is not true or false"),
        ("g_lr=nan..1", "nan is not a number; as in g_lr=0.001,0.003."),
        ("batch_size=5..7", "fewer than two powers of two"),
        ("seed=0..99999999999", "has more than 1000 values; list some, as in seed=1,2,3."),
    ],
)
def test_an_invalid_dimension_is_refused_with_a_correction(text: str, message: str) -> None:
    (problem,) = problems_with(text)
    assert problem.startswith(f"--over {text}: ")
    assert message in problem


def test_all_problems_are_reported_at_once() -> None:
    assert len(problems_with("kimg", "g_lr=2..1", "beta1", "beta1")) == 3


def test_a_fixed_field_cannot_be_searched() -> None:
    (problem,) = problems_with("g_lr", config=TrainConfig(g_lr=0.1))
    assert problem == "--over g_lr: conflicts with --g-lr 0.1. Remove one."


def test_values_that_are_invalid_only_together_are_found_before_the_start() -> None:
    (problem,) = problems_with("stddev_group=2,4", "batch_size=4,6")
    assert problem == "--stddev-group 4: must divide --batch-size 6. The sweep would try this combination."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "grid"}, "--sampling grid: --over g_lr=0.0005..0.01 is a continuous range."),
        ({"trials": 2, "concurrent": 3}, "--concurrent 3: is more than --trials 2."),
        ({"trials": 0}, "--trials 0: must be from 1 to 1000."),
        ({"sampling": "Sobol"}, "--sampling Sobol: must be one of random, grid, bayesian, sobol. Did you mean sobol?"),
        ({"max_failed_fraction": 1.5}, "--max-failed-fraction 1.5: must be from 0 to 1."),
        ({"timeout_hours": 0.0}, "--timeout 0: must be more than 0 hours."),
    ],
)
def test_an_invalid_sweep_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        SweepSpec(ANY, "data", "name", read_space(["g_lr"], ANY), **fields)  # type: ignore[arg-type]
    assert any(problem.startswith(message) for problem in refused.value.problems)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("over", "messages"),
    [
        (["mirror", "loss=hinge,lsgan,wgan-gp"], ["--trials 7: there are only 6 combinations. Use --trials 6."]),
        (["mirror", "loss=hinge,lsgan,wgan-gp,standard"], []),
        (["loss=hinge"], ["--trials 7: there is only 1 combination. Use --trials 1."]),
    ],
)
def test_more_trials_than_there_are_combinations_are_refused(
    sampling: str, over: list[str], messages: list[str]
) -> None:
    found: list[str] = []
    try:
        SweepSpec(ANY, "data", "name", read_space(over, ANY), trials=7, sampling=sampling)
    except UsageError as error:
        found += error.problems
    assert found == messages


def test_the_default_number_of_trials_is_limited_except_for_a_grid() -> None:
    trials = {over: default_trials(read_space([over], ANY), "random") for over in ("mirror", "seed=1..30", "g_lr")}
    assert trials == {"mirror": 2, "seed=1..30": 20, "g_lr": 20}
    assert default_trials(read_space(["seed=1..30"], ANY), "grid") == 30


@pytest.mark.parametrize(
    ("metric", "resolution", "available"),
    [
        ("swd_64", 8, "swd, swd_8"),
        ("swd_8", 16, "swd, swd_16"),
        ("swd_256", 128, "swd, swd_16, swd_32, swd_64, swd_128"),
        ("swd_8", 8, ""),
        ("swd_128", 128, ""),
        ("swd_16", 128, ""),
        ("swd_64", None, ""),
        ("swd", 8, ""),
    ],
)
def test_an_objective_above_the_resolution_is_refused(metric: str, resolution: int | None, available: str) -> None:
    message = f"--objective {metric}: is not logged at --resolution {resolution}. Available: {available}."
    assert objective_problems(Objective(metric), TrainConfig(resolution=resolution)) == ([message] if available else [])


def test_the_accepted_scales_are_those_that_are_measured() -> None:
    for resolution in (4, 8, 16, 64):
        patches = Patches(2, resolution)
        patches.add(torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8))
        measured = set(distances(patches, patches))
        assert {
            metric for metric in SCALES if not objective_problems(Objective(metric), TrainConfig(resolution=resolution))
        } == measured


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=1))
def test_trials_without_a_value_are_sorted_last_in_both_directions(values: list[float | None]) -> None:
    for direction in ("minimize", "maximize"):
        objective = Objective("swd", direction)
        assert not any(map(math.isnan, map(objective.sort_key, values)))  # which would sort anywhere
        assert objective.sort_key(None) == float("inf")
