"""A corpus of real text without a download: the documentation inside installed Python packages.

`python examples/sample_corpus.py OUT [--rows N]` writes parquet files with the columns package,
module, name and text: the passages of docstrings of the standard library and of site-packages.
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MIN_CHARACTERS, MAX_CHARACTERS = 80, 400
FILES = 4
ROW_GROUP = 500
SCHEMA = pa.schema([(name, pa.string()) for name in ("package", "module", "name", "text")])

Row = dict[str, str]


def passages(limit: int) -> list[Row]:
    """Return up to `limit` distinct passages, in an order that depends on the machine alone."""
    rows: list[Row] = []
    seen: set[str] = set()
    for row in _all_passages():
        if row["text"] not in seen:
            seen.add(row["text"])
            rows.append(row)
            if len(rows) == limit:
                break
    return rows


def write_corpus(directory: Path, rows: list[Row]) -> None:
    """Write rows as FILES parquet files of row groups of ROW_GROUP."""
    directory.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // FILES)
    for index in range(FILES):
        part = pa.Table.from_pylist(rows[index * size : (index + 1) * size], schema=SCHEMA)
        pq.write_table(part, directory / f"part-{index}.parquet", row_group_size=ROW_GROUP)


def _all_passages() -> Iterator[Row]:
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if not {"site-packages", "test", "tests", "idlelib"} & set(relative.parts):
                yield from _module_passages(path, relative)


def _module_passages(path: Path, relative: Path) -> Iterator[Row]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escapes are none of our business
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    module = ".".join(relative.with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = "" if isinstance(node, ast.Module) else node.name
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and text.isprintable():
                    package = relative.parts[0].removesuffix(".py")
                    yield {"package": package, "module": module, "name": name, "text": text}


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--rows", type=int, default=6000, help="passages to write at most")
    args = parser.parse_args()
    rows = passages(args.rows)
    write_corpus(args.out, rows)
    print(f"{len(rows)} passages in {FILES} files under {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
