"""Values that do not fit, in every key of an encoder's config and preprocessor: converted, or
refused by name, and what is converted is what the loader can be asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.architectures.rules import ConversionOptions
from quantkit.errors import QuantkitError
from quantkit.loading.model import faults
from quantkit.loading.values import Info
from quantkit.model.encoder import encoder_from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.config_fuzz import VALUES, changed, places
from tests.checkpoints import encoders, from_recipe
from tests.sampling import one_in

ASKED = ConversionOptions(mmproj=True)
FILES = ("config.json", "params.json", "preprocessor_config.json", "processor_config.json")
EVERY = 7  # of the changes, one; another one in each case


@pytest.mark.parametrize("case", one_in(6, encoders()))
def test_no_key_of_any_encoder_ends_in_a_traceback(case: str, tmp_path: Path) -> None:
    files = CheckpointFiles.local(from_recipe(case, tmp_path))
    tried, refused, said = 0, 0, list[str]()
    for name in filter(files.has, FILES):
        whole = files.json(name)
        changes = [
            (path, value)
            for path in places(whole)
            if path[0] != "text_config" or path[-1] == "hidden_size"
            for value in VALUES
        ]
        for path, value in changes[sum(map(ord, case)) % EVERY :: EVERY]:
            files._objects[name] = changed(whole, {path: value})
            tried += 1
            try:
                model = encoder_from_checkpoint(files, "bf16", ASKED)
                faults(model.kv, [Info(t.name, t.shape, t.stored) for t in model.tensors])
            except QuantkitError as e:
                refused += 1
                said.append(str(e))
            except Exception as e:
                raise AssertionError(f"{case}: {name} with {path} {value!r}: {e!r}") from e
        files._objects[name] = whole
    assert 0 < refused < tried
    assert not [text for text in said if "\n" in text]
