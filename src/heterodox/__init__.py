"""Published alternatives to the defaults of deep learning, and their papers' claims, measured."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.swapping import swap

__version__ = "0.1.0"
__all__ = ["__version__", "swap"]

__getattr__ = lazy_exports(__name__, {"swap": "heterodox.swapping"})
