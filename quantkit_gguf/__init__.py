"""The commands `quantkit` and `quantkit-gguf`, in a module whose name nobody else's package has.

The module `quantkit` has a name that others use too: `llm-quantkit` installs a `quantkit/cli.py` of
its own over ours. So the commands begin here, where that can be seen and said.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "quantkit-gguf"


def main() -> None:
    """Run the command line. Exit code 1, and one line, where the module `quantkit` is another's or
    not whole."""
    try:
        import quantkit
        from quantkit import cli
    except ImportError as e:
        sys.exit(_told(str(e)))
    if getattr(quantkit, "DISTRIBUTION", None) != DISTRIBUTION or not hasattr(cli, "COMMANDS"):
        sys.exit(_told("files of it are another package's"))
    cli.main()


def _told(wrong: str) -> str:
    """What is in the way of the module, and what to do about it."""
    mend = f"pip install --force-reinstall {DISTRIBUTION}"
    installed = metadata.packages_distributions().get("quantkit", ())
    others = sorted({name for name in installed if name.lower() != DISTRIBUTION})
    place = next(iter(getattr(sys.modules.get("quantkit"), "__path__", ())), None)
    ours = Path(__file__).parent.parent / "quantkit"
    if others:
        wrong = f"{' and '.join(others)} installs a module of the same name"
        mend = f"pip uninstall {' '.join(others)}, then {mend}"
    elif place and Path(place).resolve() != ours.resolve():
        wrong = f"{place} is found first"
        mend = "rename it, or run this from another directory"
    said = (
        f"error: the module quantkit is not that of {DISTRIBUTION}, or not whole: {wrong}; {mend}"
    )
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)
