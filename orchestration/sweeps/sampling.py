"""Which settings does each trial get? Optuna's samplers over our search space, and its database of the sweep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from msggan.errors import RunFolderError
from orchestration.sweeps.space import Choice, Dimension, SearchSpace
from orchestration.sweeps.spec import MOST_TRIALS, Objective, Trial

STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.COMPLETE, "failed": TrialState.FAIL}
MOST_DRAWS = 2**14  # of 1000 combinations the last one comes by some 7500, and seldom later
MOST_PROPOSALS = 8
SEEDS = 2**31  # numpy takes no more; beyond, seeds begin again


def draw(space: SearchSpace, sampling: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The settings of the first `count` trials, none twice: of a longer list the beginning. Not for bayesian."""
    if sampling == "grid":
        return list(itertools.islice(space.combinations(), count))
    stream = (_sobol if sampling == "sobol" else _random)(space, seed % SEEDS)
    return list(itertools.islice(_once_each(stream, space) if space.is_grid else stream, count))


def _random(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while True:
        yield study.ask(distributions(space)).params


def _sobol(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    """Scrambled Sobol points. Optuna's own sampler leaves choices to chance; here they are spread evenly too."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(space.dimensions), scramble=True, seed=seed)
    for power in itertools.count():  # the points are even among themselves in powers of two: 1, 2, 4, … in all
        for point in points.random_base2(max(0, power - 1)):
            yield {
                dimension.name: at(dimension, float(share))
                for dimension, share in zip(space.dimensions, point, strict=True)
            }


def _once_each(stream: Iterator[dict[str, Any]], space: SearchSpace) -> Iterator[dict[str, Any]]:
    """The combinations in the order in which they first come; at last those that were long in coming."""
    seen = set()
    for settings in itertools.chain(itertools.islice(stream, MOST_DRAWS), space.combinations()):
        key = tuple(settings.values())
        if key not in seen:
            seen.add(key)
            yield settings


def at(dimension: Dimension, share: float) -> Any:
    """The value that lies at `share`, from 0 to below 1, of a dimension."""
    if isinstance(dimension, Choice):
        return dimension.values[min(int(share * len(dimension.values)), len(dimension.values) - 1)]
    if dimension.log:
        value = dimension.low * (dimension.high / dimension.low) ** share
    else:
        value = dimension.low + share * (dimension.high - dimension.low)
    return min(max(value, dimension.low), dimension.high)  # rounding may leave the range by its last digit


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space in Optuna's words."""
    return {
        dimension.name: CategoricalDistribution(dimension.values)
        if isinstance(dimension, Choice)
        else FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        for dimension in space.dimensions
    }


class Study:
    """The sweep in Optuna's database. Its trials have the sweep's numbers, and Bayesian sampling learns from them.

    All in the database follows from `trials`, those that have begun so far: it is made anew, whatever became of it.
    Everything raises `RunFolderError` where the database cannot be written.
    """

    def __init__(
        self,
        database: Path,
        name: str,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        trials: Sequence[Trial] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._distributions = distributions(space)
        self._seed = seed % SEEDS
        self._database = database
        with self._naming():
            database.unlink(missing_ok=True)
            # Without a pool of connections none stays open, which nobody would close.
            storage = RDBStorage(f"sqlite:///{database.as_posix()}", engine_kwargs={"poolclass": NullPool})
            self._study = optuna.create_study(study_name=name, storage=storage, direction=objective.direction)
        for number, trial in enumerate(trials):
            self.begin(number, trial.settings)
            if trial.state in STATES:
                self.end(number, trial.state, trial.objective)

    def begin(self, number: int, settings: dict[str, Any]) -> None:
        """Notes that a trial runs, unless it is noted already."""
        with self._naming():
            if number >= len(self._study.get_trials(deepcopy=False)):
                self._study.add_trial(
                    create_trial(state=TrialState.RUNNING, params=settings, distributions=self._distributions)
                )

    def propose(self, number: int) -> dict[str, Any]:
        """The settings that look best after the trials that have ended; `number` makes the chance its own.

        In a space of choices they are others than those of every trial before, while there are others.
        """
        with self._naming():
            before = self._study.get_trials(deepcopy=False)
        settings = self._untried(number, [trial.params for trial in before])
        self.begin(number, settings)
        return settings

    def end(self, number: int, state: str, objective: float | None) -> None:
        """Notes how a trial ended. state: completed, stopped or failed."""
        with self._naming():
            if self._study.get_trials(deepcopy=False)[number].state.is_finished():
                return
            if objective is None or state == "failed":
                self._study.tell(number, state=TrialState.FAIL)
            else:
                self._study.tell(number, objective, state=STATES[state])

    def _untried(self, number: int, tried: list[dict[str, Any]]) -> dict[str, Any]:
        proposals = (self._proposal(number + attempt * MOST_TRIALS) for attempt in range(MOST_PROPOSALS))
        first = next(proposals)
        if not self._space.is_grid:
            return first
        others = itertools.chain([first], proposals, self._space.combinations())
        return next((settings for settings in others if settings not in tried), first)

    def _proposal(self, chance: int) -> dict[str, Any]:
        """What the sampler proposes, in a study of its own: nothing is noted yet."""
        study = optuna.create_study(
            direction=self._study.direction,
            sampler=optuna.samplers.TPESampler(
                seed=self._seed + chance, n_startup_trials=max(4, 2 * len(self._distributions))
            ),
        )
        with self._naming():
            study.add_trials(self._study.get_trials(deepcopy=False))
        return dict(study.ask(self._distributions).params)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """What goes wrong in the database names it: a full disk, or one that locks no files."""
        try:
            yield
        except (OSError, SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            reason = getattr(cause, "strerror", None) or str(getattr(cause, "orig", cause)).strip().split("\n")[0]
            raise RunFolderError(
                f"{self._database}: cannot be written ({reason}).",
                "Free some space, or choose a --runs-dir on a disk of this machine. The same command goes on.",
            ) from error
