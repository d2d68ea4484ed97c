"""Shows one row of a file in full, exactly as it would be trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastsft.data import files, formats, show
from fastsft.data.documents import DocumentEncoder
from fastsft.data.encode import Encoded, encode, prove
from fastsft.data.render import Renderer
from fastsft.data.report import Sample
from fastsft.data.rows import DataFile, Row
from fastsft.data.sources import parts
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow, DataError
from fastsft.recipe import Recipe, Source


def show_row(
    recipe: Recipe, tokenizer: ChatTokenizer, place: str
) -> tuple[Sample, Mapping[str, str]]:
    """The row at `file:line` and what is known of it.

    Raises `DataError` where there is no such row, and what is wrong with it.
    """
    name, _, number = place.rpartition(":")
    if not name or not number.isdigit():
        raise DataError(f"{place!r} is no place", where="--row", hint="write FILE:LINE")
    file, source = _find(recipe, name)
    row = files.row_at(file, int(number))
    if isinstance(row, BadRow):
        raise row
    row = formats.rename(row, source.columns) if source.columns else row
    shape = formats.detect(row.value, where=row.where)
    encoded = _encoded(recipe, tokenizer, row, shape)
    segments = show.segments(encoded.input_ids, encoded.labels, tokenizer)
    length, trained = len(encoded.input_ids), int(encoded.trained.sum())
    limit = recipe.data.max_tokens
    facts = {
        "shape": shape,
        "tokens": f"{length:,}" + (f", more than max_tokens = {limit}" if length > limit else ""),
        "trained tokens": f"{trained:,} ({trained / length:.0%})",
    }
    return Sample(row.where, tuple(segments)), facts


def _find(recipe: Recipe, name: str) -> tuple[DataFile, Source]:
    """The file of that name among the recipe's sources, or at that path."""
    for part in parts(recipe):
        for file in files.find(part.source.path).files:
            if name in (file.name, str(file.path), Path(file.name).name):
                return file, part.source
    if Path(name).is_file():
        return files.find(name).files[0], Source(path=name)
    raise DataError(
        f"{name} is none of the recipe's files", where="--row", hint="write FILE:LINE as reported"
    )


def _encoded(recipe: Recipe, tokenizer: ChatTokenizer, row: Row, shape: formats.Shape) -> Encoded:
    data = recipe.data
    if recipe.method == "pretrain":
        document = formats.to_document(row, shape)
        (whole,) = DocumentEncoder(tokenizer, 2**31)(document, is_first=True)
        return whole
    renderer = Renderer(tokenizer, train_on=data.train_on, system=data.system, date=data.date)
    rendered = renderer(formats.to_conversation(row, shape))
    encoded = encode(rendered, tokenizer)
    prove(encoded, rendered, tokenizer)
    return encoded
