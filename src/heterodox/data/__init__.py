"""Datasets: embedded, downloaded and checked, or the user's own files.

`load_text` and `load_images` take a name or a path; `fetch` gives the verified files of a dataset.
"""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.data.archive import extract
    from heterodox.data.cifar import load_cifar10n
    from heterodox.data.download import fetch
    from heterodox.data.errors import DataError
    from heterodox.data.images import ImageData, load_images
    from heterodox.data.local import availability, cache_folder, locate
    from heterodox.data.registry import DataFile, Dataset, dataset, datasets
    from heterodox.data.text import EncodedText, TextData, load_text

_EXPORTS = {
    "DataError": "heterodox.data.errors",
    "DataFile": "heterodox.data.registry",
    "Dataset": "heterodox.data.registry",
    "EncodedText": "heterodox.data.text",
    "ImageData": "heterodox.data.images",
    "TextData": "heterodox.data.text",
    "availability": "heterodox.data.local",
    "cache_folder": "heterodox.data.local",
    "dataset": "heterodox.data.registry",
    "datasets": "heterodox.data.registry",
    "extract": "heterodox.data.archive",
    "fetch": "heterodox.data.download",
    "load_cifar10n": "heterodox.data.cifar",
    "load_images": "heterodox.data.images",
    "load_text": "heterodox.data.text",
    "locate": "heterodox.data.local",
}

__all__ = [
    "DataError",
    "DataFile",
    "Dataset",
    "EncodedText",
    "ImageData",
    "TextData",
    "availability",
    "cache_folder",
    "dataset",
    "datasets",
    "extract",
    "fetch",
    "load_cifar10n",
    "load_images",
    "load_text",
    "locate",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
