"""The latent term of Eq. 8."""

import pytest
import torch

from allosr2.losses.reconstruction import latent_reconstruction


def test_mean_over_samples_and_elements():
    z_sr = torch.tensor([[[[1.0, 2.0]]], [[[0.0, -1.0]]]], requires_grad=True)
    z_hr = torch.tensor([[[[0.0, 4.0]]], [[[0.0, 2.0]]]])
    loss = latent_reconstruction(z_sr, z_hr)
    assert loss.item() == pytest.approx((1 + 4 + 0 + 9) / 4)
    loss.backward()
    torch.testing.assert_close(z_sr.grad, 2 * (z_sr.detach() - z_hr) / 4)
