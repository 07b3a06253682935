import io

import pytest
from rich.console import Console

from heterodox.report.terminal import print_verdicts


def printed(results, encoding="utf-8", **options):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_verdicts(results, Console(file=stream, width=80, **options))
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_a_pipe_gets_plain_text_of_80_columns_with_nothing_cut(gallery):
    text = printed(list(gallery.values()))
    assert "\x1b" not in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for needle in ("✓ holds", "✗ fails", "? inconclusive", "lower is better", "NaN", "smoke"):
        assert needle in words


def test_a_terminal_gets_colours_beside_the_words(gallery):
    text = printed([gallery["laptop-sigmoid-attention"]], force_terminal=True)
    assert "\x1b[1;32m✓ holds" in text


def test_verdict_effect_and_means_are_told(gallery):
    claim = gallery["laptop-sigmoid-attention"].claims[1]
    text = printed([gallery["laptop-sigmoid-attention"]])
    mean = f"{sum(claim.values['softmax'].values()) / 5:.3f}"
    assert f"softmax  {mean}" in text
    assert "below" in text and "0.02" in text
    assert "4 claims: 2 hold, 1 fails, 1 inconclusive; 10 min of measuring" in text


def test_failed_runs_are_named_with_their_error(gallery):
    text = " ".join(printed([gallery["laptop-z-loss"]]).split())
    assert "seed 3" in text and "RuntimeError" in text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_our_signs_is_no_reason_to_break(gallery, encoding):
    text = printed(list(gallery.values()), encoding=encoding)
    assert "+ holds" in text and "x fails" in text and "sigmoid - softmax" in text


def test_square_brackets_in_texts_are_no_markup(gallery):
    assert "[nats/char]" in printed([gallery["smoke-sigmoid-attention"]])
