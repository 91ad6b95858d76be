"""What is measured of a pair, against the flow's own functions by hand; means; plots that can be read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from allosr2.errors import DataError, ImageError
from allosr2.evaluation.diagnosis import Diagnosis, diagnose_pair, factors_of
from allosr2.evaluation.trajectory_plots import PLOTS, save_figure, snr_curve
from allosr2.imaging.quality import psnr_y


class Shrunk:
    """A codec whose latents are pixels, four times smaller; `gain` is what its encoder's adapters do."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return self.gain * torch.nn.functional.avg_pool2d(image, 4)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.repeat_interleave(4, 2).repeat_interleave(4, 3)


def model_of(field, t_star: float = 0.4, gain: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        codec=Shrunk(gain), velocity=field, config=SimpleNamespace(t_star=t_star)
    )


def image(seed: int, side: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, side, side, generator=generator)


def test_a_field_that_shrinks_latents() -> None:
    """dz/dt = z: n steps multiply by (1 - t*/n)^n, in the same direction throughout."""
    lr, hr = image(0), image(1)
    found = diagnose_pair(model_of(lambda z, _: z, gain=1.1), Shrunk(), lr, hr)
    z_lr, z_frozen, z_hr = (Shrunk(g).encode(x).numpy() for g, x in ((1.1, lr), (1, lr), (1, hr)))

    def rms(z: np.ndarray) -> float:
        return float(np.sqrt(np.square(z).mean()))

    for steps in (1, 2, 4, 8, 16):
        end = (1 - 0.4 / steps) ** steps * z_lr
        assert found.error[steps] == pytest.approx(rms(end - z_hr), rel=1e-5)
        decoded = Shrunk().decode(torch.from_numpy(end))
        assert found.psnr_y[steps] == pytest.approx(float(psnr_y(decoded, hr)), abs=1e-2)
        assert -1 < found.ssim_y[steps] < 1
    assert found.detour == pytest.approx(1)
    assert found.turning == pytest.approx([0] * 15, abs=1e-3)
    change = [1 - (1 - 0.025) ** k for k in range(16)]
    assert found.velocity_change == pytest.approx(change, abs=1e-5)
    assert found.error_of_lr == pytest.approx(rms(z_lr - z_hr), rel=1e-5)
    at = [rms((1 - 0.4 * factor) * z_lr - z_hr) for factor in np.linspace(0.5, 1.5, 9)]
    assert found.error_at == pytest.approx(at, rel=1e-5)
    target = (z_lr - z_hr) / 0.4
    residual = [rms(z - target) / rms(target) for z in (z_lr, z_hr)]
    assert (found.fatc_residual[0], found.fatc_residual[-1]) == pytest.approx(residual, rel=1e-5)
    for power, z in ((found.adapted, z_lr), (found.frozen, z_frozen)):
        sigma = rms(z - z_hr)
        assert float(power.pair_times) == pytest.approx(sigma / (1 + sigma), rel=1e-5)


def diagnosis(count: int = 3) -> Diagnosis:
    pairs = {
        f"{seed}.png": diagnose_pair(
            model_of(lambda z, t: z * (1 + t.view(-1, 1, 1, 1)) - z.flip(-1), gain=1.1),
            Shrunk(),
            image(seed) * 0.9,
            image(10 + seed),
        )
        for seed in range(count)
    }
    return Diagnosis(t_star=0.4, pairs=pairs)


def test_means_and_the_exact_t_star_of_all_pairs() -> None:
    of_all = diagnosis()
    fields = json.loads(json.dumps(of_all.fields()))
    pairs = list(fields["pairs"].values())
    for steps in ("1", "16"):
        expected = sum(pair["psnr_y"][steps] for pair in pairs) / 3
        assert fields["means"]["psnr_y"][steps] == pytest.approx(expected)
    expected = np.mean([pair["turning"] for pair in pairs], axis=0)
    assert fields["means"]["turning"] == pytest.approx(expected.tolist())
    assert len(fields["times"]) == 17 == len(fields["means"]["fatc_residual"])
    assert (fields["times"][0], fields["times"][-1]) == (0.4, 0)
    # signal-weighted medians of three lie on one of the three
    for name in ("adapted", "frozen"):
        times = [pair[f"t_{name}"] for pair in pairs]
        exact = fields["t_star"][f"{name}_encoder"]
        assert min(abs(exact - t) for t in times) < 1e-9
        snr = (1 / np.sort(times)[1] - 1) ** 2
        assert fields["snr"][f"{name}_encoder"] == pytest.approx(snr)
    assert fields["snr"]["of_the_path_at_t_star"] == pytest.approx((0.6 / 0.4) ** 2)


def test_the_factor_of_least_error_is_that_of_the_plots_curve() -> None:
    """Of errors relative to that at t*: pairs count alike, however large their errors are."""
    pair = next(iter(diagnosis(1).pairs.values()))
    small, large = (  # the mean error is least at the first factor, the mean ratio at the last
        replace(
            pair, error_at=[first, *[1.5 * at_t_star] * 3, at_t_star, *[1.5 * at_t_star] * 3, last]
        )
        for first, at_t_star, last in ((1.4, 1.0, 0.2), (80.0, 100.0, 130.0))
    )
    of_both = Diagnosis(t_star=0.4, pairs={"small": small, "large": large})
    assert of_both.best_factor == of_both.fields()["t_star"]["least_error_at_factor"] == 1.5
    assert of_both.means()["error_ratio_at"] == pytest.approx(
        [1.1, *[1.5] * 3, 1, *[1.5] * 3, 0.75]
    )
    (axes, _) = PLOTS["t_star.png"](of_both).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    curve, mark = lines["mean of the pairs (2)"], lines["least: 1.5 t* = 0.600"]
    least = int(np.argmin(curve.get_ydata()))
    np.testing.assert_allclose(mark.get_xydata(), curve.get_xydata()[[least]])
    np.testing.assert_allclose(mark.get_xydata(), [[0.6, 0.75]])


def test_factors_that_lead_past_the_path_are_left_out() -> None:
    assert factors_of(0.4)[-1] == 1.5
    assert factors_of(0.8) == [0.5, 0.625, 0.75, 0.875, 1.0, 1.125]
    assert factors_of(0.996)[-1] == 1.0


def test_pairs_that_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="equal or non-finite"):
        diagnose_pair(model_of(lambda z, _: z), Shrunk(), image(0), image(0))
    with pytest.raises(ImageError, match="not finite"):
        diagnose_pair(model_of(lambda z, _: z * math.nan), Shrunk(), image(0), image(1))
    with pytest.raises(ImageError, match="too small for SSIM"):
        diagnose_pair(model_of(lambda z, _: z), Shrunk(), image(0, 8), image(1, 8))


def test_a_result_equal_to_hr_has_100_db() -> None:
    # levels of 8 bits, in blocks that the codec keeps
    hr = (255 * image(1, 12)).round().repeat_interleave(4, 2).repeat_interleave(4, 3) / 255
    lr = image(0)
    toward = (Shrunk().encode(lr) - Shrunk().encode(hr)) / 0.4
    found = diagnose_pair(model_of(lambda *_: toward), Shrunk(), lr, hr)
    assert found.psnr_y[1] == 100
    assert found.error[16] == pytest.approx(0, abs=1e-6)
    assert found.fatc_residual == pytest.approx([0] * 17, abs=1e-6)


@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in PLOTS), ("snr.png", 1)])
def test_plots_are_drawn_and_no_legend_lies_on_anything(
    name: str, count: int, tmp_path: Path
) -> None:
    figure = PLOTS[name](diagnosis(count))
    save_figure(tmp_path / name, figure)
    picture = np.asarray(Image.open(tmp_path / name).convert("L"))
    assert min(picture.shape) > 500
    assert 0.005 < (picture < 200).mean() < 0.5
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        assert axes.get_xlabel()
        legend = axes.get_legend()
        if legend is not None:
            box = legend.get_window_extent(renderer)
            for other in (axes.patch, axes.xaxis.label, axes.title):
                assert not box.overlaps(other.get_window_extent(renderer)), other
            assert box.x0 >= 0
            assert box.y0 >= 0


def test_the_snr_curve_has_every_pair_and_mark() -> None:
    of_all = diagnosis()
    figure = snr_curve({"one": of_all.adapted, "two": of_all.frozen}, {"t* = 0.4": 0.4})
    curve = figure.axes[0]
    lines = {line.get_label(): line for line in curve.get_lines()}
    for label, power in (("one", of_all.adapted), ("two", of_all.frozen)):
        points = lines[f"{label}: 1 / residual"]
        np.testing.assert_allclose(points.get_xdata(), power.pair_times)
        t = np.asarray(points.get_xdata())
        np.testing.assert_allclose(points.get_ydata(), ((1 - t) / t) ** 2)
    assert list(lines["t* = 0.4"].get_xdata()) == [0.4, 0.4]


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(ImageError, match=r"plot\.png"):
        save_figure(tmp_path / "plot.png", PLOTS["steps.png"](diagnosis(1)))
