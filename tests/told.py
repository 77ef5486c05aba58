"""A progress that remembers what it was told."""

from __future__ import annotations

from quantkit.progress import Progress


class Told(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[str, int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, step: str, done: int, total: int) -> None:
        self.updates.append((step, done, total))
