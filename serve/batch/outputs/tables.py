"""The measures of a whole collection as tables: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from serve.batch.outputs.format import CONFIDENCES, Create, Format, Merge, OutputOptions, Part, json_bytes
from serve.batch.outputs.measures import CLASSES, COMPONENTS, Row, measure
from serve.batch.result import Legend, Result

_TABLES = {"classes": CLASSES, "components": COMPONENTS}
_GROUP = 10_000
"""Rows of a Parquet file that are written at once."""


def _part(result: Result, options: OutputOptions) -> bytes:
    return json_bytes(asdict(measure(result, options)))


def _rows(parts: Iterable[bytes], table: str) -> Iterator[Row]:
    for part in parts:
        yield from json.loads(part)[table]


def _csv(parts: Iterable[bytes], legend: Legend, options: OutputOptions, create: Create) -> None:
    for table, columns in _TABLES.items():
        with create(f"{table}.csv") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.DictWriter(text, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(_rows(parts, table))
            text.flush()
            text.detach()


def _parquet(parts: Iterable[bytes], legend: Legend, options: OutputOptions, create: Create) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    for table, columns in _TABLES.items():
        schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
        with create(f"{table}.parquet") as file, parquet.ParquetWriter(file, schema) as writer:
            rows = _rows(parts, table)
            while group := list(itertools.islice(rows, _GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))


_MEASURES = Part("measures", _part)
_NEEDS = frozenset({CONFIDENCES})
CSV = Format(
    "csv",
    "measures: a row for each photo and class, and one for each connected part",
    merge=Merge(_csv, _MEASURES),
    needs=_NEEDS,
)
PARQUET = Format(
    "parquet", "the same measures as Parquet", merge=Merge(_parquet, _MEASURES), needs=_NEEDS, packages=("pyarrow",)
)
