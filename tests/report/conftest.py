import warnings
from pathlib import Path

import pytest
from tests.report import fake_results

from heterodox.report.load import load_results
from heterodox.report.page import write_report


@pytest.fixture(scope="session")
def gallery_folder(tmp_path_factory) -> Path:
    """Results of every kind, with their report."""
    out = fake_results.write(tmp_path_factory.mktemp("gallery"), fake_results.gallery())
    write_report(out)
    return out


@pytest.fixture(scope="session")
def gallery(gallery_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {result.key: result for result in load_results(gallery_folder)}
