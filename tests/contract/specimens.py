"""The table of specimens: every public component, one row each or one a case."""

from tests.contract import attention_specimens, model_specimens, training_specimens

SPECIMENS = (
    *attention_specimens.SPECIMENS,
    *training_specimens.SPECIMENS,
    *model_specimens.SPECIMENS,
)
