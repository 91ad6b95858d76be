"""Color correction against a transcription with scipy.ndimage and closed forms."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from allosr2.imaging.color import RADIUS, match_color


def low_frequencies(plane: np.ndarray) -> np.ndarray:
    for level in range(5):
        kernel = np.zeros(2 * 2**level + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (0, 1):
            plane = ndimage.correlate1d(plane, kernel, axis=axis, mode="nearest")
    return plane


@pytest.mark.parametrize("shape", [(70, 90), (1100, 9), (20, 25), (1, 60), (40, 1), (1, 1)])
def test_equals_scipy(shape):
    generator = np.random.default_rng(0)
    sr, reference = generator.random((2, 2, 3, *shape))
    expected = np.stack(
        [
            [s - low_frequencies(s) + low_frequencies(r) for s, r in zip(*planes, strict=True)]
            for planes in zip(sr, reference, strict=True)
        ]
    )
    actual = match_color(torch.tensor(sr), torch.tensor(reference))
    np.testing.assert_allclose(actual.numpy(), expected.clip(0, 1), atol=1e-12)


def test_constant_shift_is_removed():
    reference = 0.25 + 0.5 * torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.1, -0.07, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        match_color(reference + shift, reference), reference, rtol=0, atol=1e-6
    )


def test_slow_tint_goes_and_detail_stays():
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    detail = 0.1 * torch.sin(2 * torch.pi * x / 4)  # the first levels annul this period exactly
    tint = 0.1 * torch.cos(torch.pi * y / 256)
    reference = torch.full((1, 3, 256, 256), 0.5)
    result = match_color(reference + detail + tint, reference)
    inside = (..., slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    error = (result - reference - detail)[inside].abs().max()
    # A cosine of frequency f passes the blur with the product of cos^2(pi f 2^i).
    frequency = 1 / 512
    passed = np.prod([np.cos(np.pi * frequency * 2**level) ** 2 for level in range(5)])
    assert error <= 0.1 * (1 - passed) + 1e-6
    assert error < 0.002


def test_equal_inputs_stay():
    image = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    assert torch.equal(match_color(image, image), image)


def test_inputs_are_not_written_to_and_result_is_clamped():
    sr, reference = torch.full((1, 3, 9, 9), 0.95), torch.ones(1, 3, 9, 9)
    sr[..., 4, 4] = 1
    result = match_color(sr, reference)
    assert result.max() == 1
    assert sr[..., 0, 0].max() == 0.95
    assert reference.min() == 1


def test_influence_ends_at_the_radius():
    generator = torch.Generator().manual_seed(0)
    sr, reference = torch.rand(2, 1, 3, 200, 150, generator=generator)
    changed = sr.clone()
    changed[..., 100, 70] += 0.5
    rows, columns = (
        (match_color(sr, reference) != match_color(changed, reference))
        .any(1)[0]
        .nonzero(as_tuple=True)
    )
    assert rows.min() >= 100 - RADIUS
    assert rows.max() <= 100 + RADIUS
    assert columns.min() >= 70 - RADIUS
    assert columns.max() <= 70 + RADIUS
    part = match_color(sr[..., 40:160, 20:130], reference[..., 40:160, 20:130])
    whole = match_color(sr, reference)[..., 40:160, 20:130]
    inside = (..., slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    torch.testing.assert_close(part[inside], whole[inside], rtol=0, atol=1e-6)
