"""What a job tells while it works: one protocol for all of them."""

from __future__ import annotations


class Detail(str):
    """A line that is no news to most people: `Progress.detail` gets it."""


class Progress:
    """Told by a job how far it is. This one passes nothing on; subclass it and override what you
    want to know. Calls may come from any thread, one at a time."""

    def note(self, text: str) -> None:
        """Something to know before the work begins: a choice that was made, data that is missing.
        One line."""

    def detail(self, text: str) -> None:
        """The same for those who want to know everything: what was done as it always is."""

    def tell(self, text: str) -> None:
        """A note, or a detail if it is one."""
        (self.detail if isinstance(text, Detail) else self.note)(text)

    def update(self, step: str, done: int, total: int) -> None:
        """`done` of `total` bytes of a step are done. A step begins with its first update."""


SILENT = Progress()
