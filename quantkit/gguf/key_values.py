"""gguf's writer, for its names of keys: what is added is kept as the bytes that a file has."""

from __future__ import annotations

from typing import Any

from gguf import GGUFValueType, GGUFWriter

from quantkit.gguf.container import KeyValue, array, scalar, string


class KeyValueWriter(GGUFWriter):
    """A GGUFWriter without a file. Every `add_...` method for keys ends in `add_key_value`, which
    packs the value here: an array at once, where gguf takes its elements one by one.

    A key that is added again keeps its place and takes the new value.
    """

    def __init__(self, architecture: str) -> None:
        self._entries: dict[str, KeyValue] = {}
        super().__init__(None, architecture)  # adds general.architecture

    @property
    def entries(self) -> tuple[KeyValue, ...]:
        """What was added so far, in order."""
        return tuple(self._entries.values())

    def remove_key(self, key: str) -> None:
        """Take a key out, if it is there."""
        self._entries.pop(key, None)

    def add_key_value(
        self, key: str, val: Any, vtype: GGUFValueType, sub_type: GGUFValueType | None = None
    ) -> None:
        """Raises struct.error, TypeError, ValueError or OverflowError where `val` is not of the
        type."""
        if vtype is GGUFValueType.ARRAY:
            element = GGUFValueType.UINT8 if isinstance(val, bytes) else sub_type
            self._entries[key] = array(key, val, element)
        elif vtype is GGUFValueType.STRING:
            self._entries[key] = string(key, val.encode() if isinstance(val, str) else val)
        else:
            self._entries[key] = scalar(key, vtype, val)
