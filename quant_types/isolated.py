"""Commands that run a module of ours in a process of its own, and no code of the directory that a
person stands in.

`python -m` puts the current directory before the standard library, so a `json.py` in a downloaded
repository would run. Here Python is isolated (`-I`: no current directory, no PYTHON* variables),
and is told where the packages are that this process uses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DIRECTORY = Path(__file__).parent  # where such a process runs: nobody else's modules are there

# argv: module, directory of our packages, other directories, bytes of memory, seconds of CPU (0: no
# limit), the module's own
_BEGIN = """
import os, sys
name, first, others, memory, seconds, *rest = sys.argv[1:]
try:
    import resource
except ImportError:
    pass
else:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in (resource.RLIMIT_AS, int(memory)), (resource.RLIMIT_CPU, int(seconds)):
        if most:
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))
sys.path.insert(0, first)
sys.path += filter(None, others.split(os.pathsep))
sys.argv = [name, *rest]
import runpy
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def command(module: str, *arguments: str, memory: int = 0, seconds: int = 0) -> list[str]:
    """The command line for `module` as a program; to be run in DIRECTORY, so paths among the
    `arguments` have to be absolute. `memory` bytes and `seconds` of CPU are the most that it may
    use, where the system can be asked to see to it (0: no limit)."""
    limits = (str(memory), str(seconds))
    places = (str(DIRECTORY.parent), os.pathsep.join(_others()))
    return [sys.executable, "-I", "-c", _BEGIN, module, *places, *limits, *arguments]


def _others() -> list[str]:
    """Where else this process finds packages, but for the current directory."""
    here = os.path.realpath(os.curdir)
    known = dict.fromkeys(p for p in sys.path if os.path.isabs(p) and os.path.isdir(p))
    return [p for p in known if os.path.realpath(p) != here]
