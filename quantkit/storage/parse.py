"""JSON and YAML that others wrote: parsed in bounded time and memory, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from quantkit.errors import CorruptFile

MAX_JSON = 1 << 28  # bytes; tokenizers of a million tokens have some 60 MB
MAX_YAML = 1 << 20  # bytes; PyYAML takes some seconds for it
MAX_NODES = 100_000  # of a YAML document, those that aliases repeat counted again


def parse_json(
    data: bytes,
    label: str,
    once: Callable[[Any], Any] | None = None,
    mend: str = "mend it, or download it again",
) -> Any:
    """The value in a JSON file that messages call `label`; `once` is json's `object_pairs_hook`,
    `mend` what to do where it is none. Raises CorruptFile."""
    if not data:
        raise CorruptFile(f"{label}: not JSON (empty); {mend}")
    if len(data) > MAX_JSON:
        raise CorruptFile(f"{label}: {len(data)} bytes of JSON; {MAX_JSON} are read; {mend}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise CorruptFile(f"{label}: not JSON that is read (nested too deep); {mend}") from None
    except ValueError as e:  # not UTF-8, not JSON, or a number of thousands of digits
        raise CorruptFile(f"{label}: not JSON ({e}); {mend}") from None


def is_no_json(data: bytes) -> bool:
    """Whether text is no JSON, as json itself says, or says nothing (`null`)."""
    try:
        return len(data) <= MAX_JSON and json.loads(data.decode("utf-8")) is None
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False


def parse_yaml(text: str | bytes, label: str) -> Any:
    """The value in a YAML document that messages call `label`. Raises CorruptFile."""
    import yaml

    if len(text) > MAX_YAML:
        raise CorruptFile(f"{label}: {len(text)} bytes of YAML; {MAX_YAML} are read")
    try:
        loader = _loader()(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise CorruptFile(f"{label}: not YAML that is read (nested too deep)") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, LookupError) as e:
        # PyYAML passes on what dates, numbers and keys of strange kinds raise
        reason = " ".join(str(e).split())
        raise CorruptFile(f"{label}: malformed YAML ({reason})") from None


def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Counts nodes as if each alias were written out: a kilobyte can stand for gigabytes."""

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.count, self.sizes = 0, dict[int, int]()

        def compose_node(self, parent: Any, index: Any) -> Any:
            before, is_alias = self.count, self.check_event(yaml.AliasEvent)
            node = super().compose_node(parent, index)
            if is_alias and id(node) not in self.sizes:
                raise yaml.YAMLError("an alias of what it stands in")
            self.count += self.sizes[id(node)] if is_alias else 1
            if self.count > MAX_NODES:
                raise yaml.YAMLError(f"more than {MAX_NODES} values")
            if not is_alias:
                self.sizes[id(node)] = self.count - before
            return node

    return Loader
