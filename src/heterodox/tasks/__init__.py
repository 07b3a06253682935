"""Tasks: problems with real data, each a training procedure with open slots and a metric."""

from heterodox.attention import ATTENTION, ATTENTION_LAYOUTS, POSITIONS
from heterodox.layers import HEADS, NORMS
from heterodox.losses import INDEXED_LOSSES, LOSSES, REGRESSION_LOSSES
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.task import Task

# "linear" takes the loss of its slot; the others are factored layers with a loss of their own.
OUTPUT_LAYERS = ("linear", "z-loss", "taylor-softmax", "spherical-softmax", "spherical-squared")

TASKS = {
    task.name: task
    for task in (
        Task(
            name="language",
            summary="A small GPT learns to predict the next byte, character or word of a text.",
            train="heterodox.tasks.language:train",
            check="heterodox.tasks.language:check",
            settings="heterodox.tasks.language:SETTINGS",
            slots={
                "attention": ATTENTION | ATTENTION_LAYOUTS,
                "position": POSITIONS,
                "norm": NORMS,
                "loss": LOSSES,
                "output": OUTPUT_LAYERS,
                "optimizer": OPTIMIZERS,
                "schedule": SCHEDULES,
            },
            data="python-docs",
            accepts="a text dataset's name, or a text file in UTF-8",
            metric="validation loss [nats/byte]",
            better="lower",
        ),
        Task(
            name="images",
            summary="A small network learns to tell the classes of images apart.",
            train="heterodox.tasks.images:train",
            check="heterodox.tasks.images:check",
            settings="heterodox.tasks.images:SETTINGS",
            slots={
                "model": ("cnn", "vit", "mlp"),
                "attention": ATTENTION,
                "norm": NORMS,
                "loss": LOSSES | INDEXED_LOSSES,
                "optimizer": OPTIMIZERS,
                "schedule": SCHEDULES,
            },
            data="digits",
            accepts="an image dataset's name, or a folder with one subfolder of images a class",
            metric="test accuracy [%]",
            better="higher",
        ),
        Task(
            name="arithmetic",
            summary="An MLP learns a op b mod p from some of all pairs, and groks the rest or not.",
            train="heterodox.tasks.arithmetic:train",
            check="heterodox.tasks.arithmetic:check",
            settings="heterodox.tasks.arithmetic:SETTINGS",
            slots={
                "operation": ("+", "-", "*"),
                "loss": LOSSES,
                "optimizer": OPTIMIZERS,
                "schedule": SCHEDULES,
            },
            data=None,
            accepts="nothing: the task is all pairs of residues",
            metric="test accuracy [%]",
            better="higher",
        ),
        Task(
            name="recall",
            summary="A small decoder reads keys with values and answers keys with their values.",
            train="heterodox.tasks.recall:train",
            check="heterodox.tasks.recall:check",
            settings="heterodox.tasks.recall:SETTINGS",
            slots={
                "attention": ATTENTION | ATTENTION_LAYOUTS,
                "position": POSITIONS,
                "norm": NORMS,
                "loss": LOSSES,
                "optimizer": OPTIMIZERS,
                "schedule": SCHEDULES,
            },
            data=None,
            accepts="nothing: sequences are drawn",
            metric="accuracy at queries [%]",
            better="higher",
        ),
        Task(
            name="tabular",
            summary="A model learns to predict a number, or a class, from the columns of a table.",
            train="heterodox.tasks.tabular:train",
            check="heterodox.tasks.tabular:check",
            settings="heterodox.tasks.tabular:SETTINGS",
            slots={
                "model": ("mlp", "linear", "forest", "boosting", "gbnn"),
                "loss": ("default", *REGRESSION_LOSSES, *LOSSES),
                "optimizer": OPTIMIZERS,
                "schedule": SCHEDULES,
            },
            data="diabetes",
            accepts="a table's name, or a CSV file with a header",
            metric="test error [RMSE / std of the target, or % of wrong classes]",
            better="lower",
        ),
        Task(
            name="forecast",
            summary="A small decoder learns the distribution of a series' next value over bins.",
            train="heterodox.tasks.forecast:train",
            check="heterodox.tasks.forecast:check",
            settings="heterodox.tasks.forecast:SETTINGS",
            slots={
                "head": HEADS,
                "attention": ATTENTION | ATTENTION_LAYOUTS,
                "position": POSITIONS,
                "optimizer": OPTIMIZERS,
                "schedule": SCHEDULES,
            },
            data="seasonal",
            accepts="a series' name, or a CSV file: its last column, or --set column=NAME",
            metric="weighted quantile loss of the test part",
            better="lower",
        ),
    )
}

__all__ = ["TASKS", "Task"]
