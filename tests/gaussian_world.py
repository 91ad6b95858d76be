"""A world in which every optimal velocity is known: HR latents are z_hr ~ N(mu, diag s^2).

For jointly normal x and y of independent elements, E[y | x] = E[y] + cov(x, y) / var(x) (x - E[x]) per
element. Every formula below is that one, with the moments of the path written out from Eq. 1 or Eq. 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianWorld:
    """HR latents N(mu, diag s^2), and LR latents z_hr + sigma n with n ~ N(0, I)."""

    mu: Tensor
    s: Tensor
    sigma: float = 0.6

    @classmethod
    def draw(cls, generator: torch.Generator, shape: tuple[int, int, int]) -> GaussianWorld:
        return cls(
            mu=torch.randn(shape, generator=generator, dtype=torch.float64),
            s=0.3 + torch.rand(shape, generator=generator, dtype=torch.float64),
        )

    @property
    def t_star(self) -> float:
        """The SNR of z_lr, s^2 / sigma^2, is the path's where (1 - t) / t = 1 / sigma."""
        return self.sigma / (1 + self.sigma)

    def _normal(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.randn(size, *self.mu.shape, generator=generator, dtype=torch.float64)

    def hr(self, size: int, generator: torch.Generator) -> Tensor:
        return self.mu + self.s * self._normal(size, generator)

    def lr(self, z_hr: Tensor, generator: torch.Generator) -> Tensor:
        return z_hr + self.sigma * self._normal(z_hr.shape[0], generator)

    def generative_velocity(self, z_t: Tensor, t: Tensor) -> Tensor:
        """E[eps - z_hr | z_t] for z_t = (1 - t) z_hr + t eps; a VelocityField."""
        t = t.view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * self.s**2 + t**2
        covariance = t - (1 - t) * self.s**2
        return -self.mu + covariance / variance * (z_t - (1 - t) * self.mu)

    def posterior_mean(self, z_t: Tensor, t: Tensor) -> Tensor:
        """E[z_hr | z_t] for z_t = (1 - t) z_hr + t eps."""
        t = t.view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * self.s**2 + t**2
        return self.mu + (1 - t) * self.s**2 / variance * (z_t - (1 - t) * self.mu)

    def sr_velocity(self, z_t: Tensor, t: Tensor) -> Tensor:
        """E[(z_lr - z_hr) / t* | z_t] for z_t = z_hr + t / t* (z_lr - z_hr); a VelocityField."""
        t = t.view(-1, 1, 1, 1)
        slope = self.sigma / self.t_star  # z_t = z_hr + t slope n, target = slope n
        variance = self.s**2 + (t * slope) ** 2
        return t * slope**2 / variance * (z_t - self.mu)

    def least_fatc(self, t: Tensor) -> Tensor:
        """The smallest FATC at times t: the mean variance of the target given z_t."""
        t = t.view(-1, 1, 1, 1)
        slope = self.sigma / self.t_star
        conditional = slope**2 * self.s**2 / (self.s**2 + (t * slope) ** 2)
        return conditional.mean()
