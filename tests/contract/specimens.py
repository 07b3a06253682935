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
    adaptation_specimens,
    attention_specimens,
    attention_svm_specimens,
    boosting_specimens,
    cauchy_schwarz_specimens,
    compression_specimens,
    continual_specimens,
    energy_specimens,
    generation_specimens,
    graph_specimens,
    head_specimens,
    label_specimens,
    model_specimens,
    physical_specimens,
    sequence_specimens,
    spiking_specimens,
    training_specimens,
)

SPECIMENS = (
    *attention_specimens.SPECIMENS,
    *training_specimens.SPECIMENS,
    *attention_svm_specimens.SPECIMENS,
    *boosting_specimens.SPECIMENS,
    *model_specimens.SPECIMENS,
    *sequence_specimens.SPECIMENS,
    *spiking_specimens.SPECIMENS,
    *compression_specimens.SPECIMENS,
    *continual_specimens.SPECIMENS,
    *energy_specimens.SPECIMENS,
    *generation_specimens.SPECIMENS,
    *cauchy_schwarz_specimens.SPECIMENS,
    *head_specimens.SPECIMENS,
    *label_specimens.SPECIMENS,
    *adaptation_specimens.SPECIMENS,
    *physical_specimens.SPECIMENS,
    *graph_specimens.SPECIMENS,
)
