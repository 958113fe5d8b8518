"""Progress of one task: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
LINE_SECONDS = 30.0  # between two lines of a log


class Steps:
    """`with Steps(description, total) as steps`, then `steps.done(completed)` after each."""

    def __init__(self, description: str, total: int | None):
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(description, total=total)
        self.description, self.total = description, total
        self.last, self.long = time.monotonic(), False

    def __enter__(self) -> "Steps":
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def done(self, completed: int, note: str = ""):
        description = f"{self.description}  {note}" if note else self.description
        self.bar.update(self.task, completed=completed, description=description)
        if not self.bar.disable:
            return
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS or (self.long and completed == self.total):
            self.last, self.long = now, True  # a task that never was worth a line does not tell its end
            self.bar.console.print(f"{description}  {completed}/{self.total}", highlight=False)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    total = len(items) if total is None and isinstance(items, Sized) else total
    with Steps(description, total) as steps:
        for count, item in enumerate(items, start=1):
            yield item
            steps.done(count)
