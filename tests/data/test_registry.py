import subprocess
import sys

import pytest

from heterodox.data import dataset, datasets


def test_every_dataset_says_what_it_is_and_on_which_terms_it_may_be_used():
    for entry in datasets():
        assert entry.title and entry.splits and entry.licence and entry.citation
        known = ("text", "images", "labels", "series", "tabular", "physics", "speech", "graphs")
        assert entry.task in known


def test_every_file_has_a_checksum_and_either_an_address_or_a_word_why_not():
    for entry in datasets():
        for file in entry.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.bytes > 0
            assert bool(file.urls) != bool(entry.by_hand)
            assert all(url.endswith(f"/{file.name}") for url in file.urls)


def test_file_names_are_unique_within_a_dataset_and_paths_overall():
    paths = [file.path for entry in datasets() for file in entry.files]
    assert len(set(paths)) == len(paths)
    for entry in datasets():
        assert len({file.name for file in entry.files}) == len(entry.files)


def test_the_mirrors_are_tried_from_the_project_s_own_to_the_others():
    urls = dataset("fashion-mnist").files[0].urls
    assert [url.split("/")[2] for url in urls] == [
        "raw.githubusercontent.com",
        "fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ]


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"^name: 'fashionmnist' given.*mean 'fashion-mnist'"):
        dataset("fashionmnist")


def test_listing_and_locating_import_neither_torch_nor_pooch():
    code = (
        "import sys; from heterodox.data import availability, datasets; "
        "[availability(entry) for entry in datasets()]; import heterodox.cli.data; "
        "sys.exit(' '.join({'torch', 'pooch', 'numpy', 'requests'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
