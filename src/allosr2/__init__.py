"""One-step x4 real-world super-resolution with a flow model (arXiv:2604.19238).

The public names are imported on first use, so that `import allosr2` loads neither PyTorch nor
diffusers:

    from allosr2 import Upscaler

    upscaler = Upscaler.from_pretrained("mini")
    enlarged = upscaler(image)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allosr2.errors import AlloSR2Error
    from allosr2.model import AlloSR2
    from allosr2.upscaler import Upscaler

__all__ = ["AlloSR2", "AlloSR2Error", "Upscaler", "__version__"]

__version__: str

_MODULE_OF = {
    "AlloSR2": "allosr2.model",
    "AlloSR2Error": "allosr2.errors",
    "Upscaler": "allosr2.upscaler",
}


def __getattr__(name: str) -> object:
    """Import the public name `name` from the module that defines it (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("allosr2")
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'allosr2' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
