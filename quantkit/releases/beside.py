"""What is written beside the weights of a release: pictures, card, page, sums, Modelfile,
manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit import plain_text
from quantkit.loading.kinds import PREFIX
from quantkit.model.model import Model
from quantkit.releases import card, manifest, modelfile, page, previous
from quantkit.releases.manifest import Manifest
from quantkit.reporting.inspection import Description
from quantkit.reporting.table import Row
from quantkit.storage.whole import remove, write_text


def write(
    directory: Path, this: Manifest, rows: Sequence[Row], description: Description, model: Model
) -> list[str]:
    """Write everything but the weights, the manifest last. Returns the names of what there is.
    `rows` are those of all files, encoders among them."""
    more = [row for row in rows if row.type.startswith(PREFIX)]
    rows = [row for row in rows if row not in more]
    values = {item.key: item.value for item in model.kv}
    names = [t.name for t in model.tensors]
    usual = card.usual(rows)
    first = this.first_file(usual.type)
    before = this.made_from.quantized
    compared = len(rows) >= previous.COMPARED
    measured = [page.error_by_size(rows, this.errors, before)] if compared else []
    figures = [*page.figures(this, rows), *measured]
    drawn = dict(zip(previous.PICTURES, figures, strict=False))
    shown = {name: figure.title for name, figure in drawn.items()}
    texts = {
        **{name: figure.draw(width=720) for name, figure in drawn.items()},
        previous.CARD: card.render(this, rows, description, values, shown, more),
        previous.PAGE: page.render(this, rows, description, values, measured, more),
        previous.MODELFILE: modelfile.render(
            first, usual.context, values, usual.files > 1, names, [row.name for row in more[:1]]
        ),
        manifest.CHECKSUMS: manifest.as_checksums(this),
        manifest.NAME: manifest.as_json(this),
    }
    for name in set(previous.PICTURES) - drawn.keys():
        (directory / name).unlink(missing_ok=True)  # of an earlier run, with more types
    for name, text in texts.items():
        write_text(directory / name, plain_text.lines(text))
    remove(manifest.partial_path(directory))
    return list(previous.beside(len(rows)))
