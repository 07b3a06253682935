"""Datasets: embedded, downloaded and checked, or the user's own files.

`load_text`, `load_images`, `load_series` and `load_speech` take a name or a path; `fetch` gives the
verified files of a dataset.
"""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.data.acoustic import load_acoustic_cavity
    from heterodox.data.archive import extract
    from heterodox.data.cifar import load_cifar10n
    from heterodox.data.cochlea import cochlea_spikes
    from heterodox.data.corruptions import CORRUPTIONS, TUNING_CORRUPTIONS, corrupt
    from heterodox.data.download import fetch
    from heterodox.data.errors import DataError
    from heterodox.data.graph_splits import LinkData, split_edges, split_nodes
    from heterodox.data.graphs import GraphData, load_graph
    from heterodox.data.images import ImageData, load_images
    from heterodox.data.label_noise import (
        asymmetric_noise,
        human_noise,
        other_class_noise,
        symmetric_noise,
    )
    from heterodox.data.local import availability, cache_folder, locate
    from heterodox.data.registry import DataFile, Dataset, dataset, datasets
    from heterodox.data.series import SeriesData, load_series
    from heterodox.data.speech import SpeechData, load_speech
    from heterodox.data.spikes import (
        SpikeData,
        latency_code,
        rate_code,
        spoken_spikes,
        timing_patterns,
    )
    from heterodox.data.tabular import (
        TabularData,
        TabularSplit,
        load_tabular,
        split_table,
        table_names,
    )
    from heterodox.data.text import EncodedText, TextData, load_text
    from heterodox.data.wav import Recording, read_wav

_EXPORTS = {
    "CORRUPTIONS": "heterodox.data.corruptions",
    "TUNING_CORRUPTIONS": "heterodox.data.corruptions",
    "DataError": "heterodox.data.errors",
    "DataFile": "heterodox.data.registry",
    "Dataset": "heterodox.data.registry",
    "EncodedText": "heterodox.data.text",
    "GraphData": "heterodox.data.graphs",
    "ImageData": "heterodox.data.images",
    "LinkData": "heterodox.data.graph_splits",
    "Recording": "heterodox.data.wav",
    "SeriesData": "heterodox.data.series",
    "SpeechData": "heterodox.data.speech",
    "SpikeData": "heterodox.data.spikes",
    "TabularData": "heterodox.data.tabular",
    "TabularSplit": "heterodox.data.tabular",
    "TextData": "heterodox.data.text",
    "asymmetric_noise": "heterodox.data.label_noise",
    "availability": "heterodox.data.local",
    "cache_folder": "heterodox.data.local",
    "cochlea_spikes": "heterodox.data.cochlea",
    "corrupt": "heterodox.data.corruptions",
    "dataset": "heterodox.data.registry",
    "datasets": "heterodox.data.registry",
    "extract": "heterodox.data.archive",
    "fetch": "heterodox.data.download",
    "human_noise": "heterodox.data.label_noise",
    "latency_code": "heterodox.data.spikes",
    "load_acoustic_cavity": "heterodox.data.acoustic",
    "load_cifar10n": "heterodox.data.cifar",
    "load_graph": "heterodox.data.graphs",
    "load_images": "heterodox.data.images",
    "load_series": "heterodox.data.series",
    "load_speech": "heterodox.data.speech",
    "load_tabular": "heterodox.data.tabular",
    "load_text": "heterodox.data.text",
    "locate": "heterodox.data.local",
    "rate_code": "heterodox.data.spikes",
    "read_wav": "heterodox.data.wav",
    "split_edges": "heterodox.data.graph_splits",
    "split_nodes": "heterodox.data.graph_splits",
    "split_table": "heterodox.data.tabular",
    "spoken_spikes": "heterodox.data.spikes",
    "table_names": "heterodox.data.tabular",
    "other_class_noise": "heterodox.data.label_noise",
    "symmetric_noise": "heterodox.data.label_noise",
    "timing_patterns": "heterodox.data.spikes",
}

__all__ = [
    "CORRUPTIONS",
    "TUNING_CORRUPTIONS",
    "DataError",
    "DataFile",
    "Dataset",
    "EncodedText",
    "GraphData",
    "ImageData",
    "LinkData",
    "Recording",
    "SeriesData",
    "SpeechData",
    "SpikeData",
    "TabularData",
    "TabularSplit",
    "TextData",
    "asymmetric_noise",
    "availability",
    "cache_folder",
    "cochlea_spikes",
    "corrupt",
    "dataset",
    "datasets",
    "extract",
    "fetch",
    "human_noise",
    "latency_code",
    "load_acoustic_cavity",
    "load_cifar10n",
    "load_graph",
    "load_images",
    "load_series",
    "load_speech",
    "load_tabular",
    "load_text",
    "locate",
    "other_class_noise",
    "rate_code",
    "read_wav",
    "split_edges",
    "split_nodes",
    "split_table",
    "spoken_spikes",
    "symmetric_noise",
    "table_names",
    "timing_patterns",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
