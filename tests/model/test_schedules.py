"""Scheduled settings follow cosines of the number of images; by default they are constant."""

from __future__ import annotations

import pytest
from support.builders import small_config

from msggan.config import TrainConfig, changed_for_resume
from msggan.schedules import cosine, settings_at


@pytest.mark.parametrize("images", [4, 500, 10**6])
def test_settings_are_constant_by_default(images: int) -> None:
    config = small_config(g_lr=0.003, d_lr=0.002)
    assert settings_at(config, images) == (0.003, 0.002, 0.99, 1.0, config.ema_half_life_kimg)


@pytest.mark.parametrize(("progress", "value"), [(0, 3.0), (1 / 3, 2.5), (0.5, 2.0), (2 / 3, 1.5), (1, 1.0), (7, 1.0)])
def test_half_a_cosine_equals_numbers_worked_out_manually(progress: float, value: float) -> None:
    """A third of the way, cos 60° = ½: a quarter of the change is done."""
    assert cosine(3.0, 1.0, progress) == pytest.approx(value, rel=1e-12)


def test_each_setting_goes_from_its_value_to_its_final_one() -> None:
    config = small_config(
        g_lr=0.004,
        d_lr=0.002,
        beta2=0.9,
        ema_half_life_kimg=0.0,
        schedule_kimg=10.0,
        lr_final=0.25,
        gamma_final=0.1,
        beta2_final=0.99,
        ema_half_life_final_kimg=5.0,
    )
    assert settings_at(config, 0) == (0.004, 0.002, 0.9, 1.0, 0.0)
    assert settings_at(config, 5_000) == pytest.approx((0.0025, 0.00125, 0.945, 0.55, 2.5))
    assert settings_at(config, 10_000) == settings_at(config, 99_000) == pytest.approx((0.001, 0.0005, 0.99, 0.1, 5.0))


def test_warm_up_multiplies_the_learning_rates_alone() -> None:
    config = small_config(g_lr=0.004, d_lr=0.002, warm_up_kimg=2.0)
    constant = settings_at(small_config(), 500)
    assert settings_at(config, 500) == constant._replace(g_lr=0.001, d_lr=0.0005)
    assert settings_at(config, 2_000) == constant._replace(g_lr=0.004, d_lr=0.002)


def test_more_images_to_train_on_change_no_setting_of_those_before() -> None:
    config = small_config(kimg=2.0, lr_final=0.1)
    longer, _ = changed_for_resume(config, TrainConfig(kimg=9.0))
    assert (longer.kimg, longer.schedule_kimg) == (9.0, 2.0)
    assert settings_at(longer, 1_000) == settings_at(config, 1_000)
