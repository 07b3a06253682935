"""The table of specimens: every public component, one row each or one a case.

A new component needs a row in the file of its slot, and then runs through the whole contract:

    Specimen(
        "heterodox.attention.delta:DeltaNet",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads),
        bad=(("num_heads", lambda c, x: c(8, 3)),),
    ),
"""

from tests.contract import (
    attention_specimens,
    attention_svm_specimens,
    compression_specimens,
    model_specimens,
    sequence_specimens,
    training_specimens,
)

SPECIMENS = (
    *attention_specimens.SPECIMENS,
    *training_specimens.SPECIMENS,
    *attention_svm_specimens.SPECIMENS,
    *model_specimens.SPECIMENS,
    *sequence_specimens.SPECIMENS,
    *compression_specimens.SPECIMENS,
)
