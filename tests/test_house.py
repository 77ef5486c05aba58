"""The house keeps its order: imports point downward, and start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# each layer of packages may import those before it
LAYERS = (
    {"plain_text", "errors", "progress", "charts"},
    {"hub"},
    {"storage"},
    {"gguf"},
    {"loading"},
    {"llama"},
    {"source"},
    {"recipes"},
    {"calibration"},
    {"architectures", "tokenizer"},
    {"encoders"},
    {"model"},
    {"planning"},
    {"execution"},
    {"jobs"},
    {"reporting"},
    {"fitting"},
    {"releases"},
    {"editing"},
    {"verification"},
    {"api"},
    {"commands"},
    {"cli"},
    {"__main__"},
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "quantkit":
                found |= {f"quantkit.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_quantkit_imports_downward() -> None:
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    for path in (ROOT / "quantkit").rglob("*.py"):
        me = path.relative_to(ROOT / "quantkit").parts[0].removesuffix(".py")
        if me == "__init__":
            continue
        assert me in level, f"{me} has no layer"
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "quantkit" and len(parts) > 1 and parts[1] in level:
                allowed = level[parts[1]] <= level[me] or _only_for_types(path, module)
                assert allowed, f"{me} imports {parts[1]}"


def _only_for_types(path: Path, module: str) -> bool:
    text = path.read_text()
    guarded = text.partition("if TYPE_CHECKING:")[2].partition("\n\n\n")[0]
    return f"from {module} import" in guarded


def test_quant_types_knows_nothing_of_quantkit() -> None:
    for path in (ROOT / "quant_types").rglob("*.py"):
        assert not any(m.split(".")[0] == "quantkit" for m in imports(path)), path


@pytest.mark.parametrize(
    "start", ["import quantkit", "from quantkit.cli import app; app(['--help'])"]
)
def test_start_up_imports_nothing_heavy(start: str) -> None:
    heavy = ["numpy", "numba", "gguf", "torch", "tokenizers", "safetensors", "huggingface_hub"]
    code = (
        f"import sys\ntry:\n    {start}\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [m for m in {heavy} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout.splitlines()[-1] == "LOADED []"


def test_the_tour_leads_through_every_room() -> None:
    """Every package by name, and every file, but for families and commands, which are as they are
    called."""
    tour = (ROOT / "docs" / "tour.md").read_text()
    rooms = [p.relative_to(ROOT / "quantkit") for p in (ROOT / "quantkit").rglob("*.py")]
    named = {f"{room.parts[0]}/" for room in rooms if len(room.parts) > 1}
    named |= {
        room.name
        for room in rooms
        if room.name != "__init__.py"
        and room.parent.name not in ("architectures", "commands", "encoders")
    }
    assert [name for name in sorted(named) if name not in tour] == []
    assert len(list((ROOT / "quantkit").glob("*.py"))) <= 8


def test_files_stay_short() -> None:
    for package in ("quantkit", "quant_types"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 420, path
