"""Tasks: problems with real data, each a training procedure with open slots and a metric."""

from heterodox.attention import ATTENTION, ATTENTION_LAYOUTS, POSITIONS
from heterodox.layers import NORMS
from heterodox.losses import LOSSES
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.task import Task

TASKS = {
    task.name: task
    for task in (
        Task(
            name="language",
            summary="A small GPT learns to predict the next byte or character of a text.",
            train="heterodox.tasks.language:train",
            check="heterodox.tasks.language:check",
            settings="heterodox.tasks.language:SETTINGS",
            slots={
                "attention": ATTENTION | ATTENTION_LAYOUTS,
                "position": POSITIONS,
                "norm": NORMS,
                "loss": LOSSES,
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
                "loss": LOSSES,
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
    )
}

__all__ = ["TASKS", "Task"]
