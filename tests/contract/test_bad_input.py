"""Bad input: a ValueError that begins with the name of the argument, before any work is done."""

import pytest
from tests.contract.specimen import Draw, Specimen
from tests.contract.specimens import SPECIMENS

CALLS = [
    pytest.param(specimen, argument, call, id=f"{specimen.name}-{number}-{argument}")
    for specimen in SPECIMENS
    for number, (argument, call) in enumerate(specimen.bad)
]


@pytest.mark.parametrize(("specimen", "argument", "call"), CALLS)
def test_the_error_names_the_argument(specimen: Specimen, argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected") as caught:
        call(specimen.resolve(), specimen.inputs(Draw()))
    assert "\n" not in str(caught.value)
