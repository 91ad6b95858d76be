"""Procedural training images: pixel-sharp, with the statistics of photographs, from a seed."""

from allosr2.data.procedural.scene import procedural_image

__all__ = ["procedural_image"]
