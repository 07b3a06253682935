"""What is raised when a dataset cannot be had although it was asked for correctly."""


class DataError(RuntimeError):
    """A dataset is out of reach or damaged; the message is one line and says what can be done.

    A wrong argument is a `ValueError` instead.
    """
