"""Files of tiny benchmarks, in the layouts of the published ones."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq


def jsonl(path, rows):
    """Writes JSON lines, packed if the name ends in .gz."""
    lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def lines(path, rows):
    """Writes lines, packed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{row}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def parquet(path, rows):
    """Writes a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def texts(count, prefix="d"):
    """Documents with BEIR's fields."""
    return [
        {"_id": f"{prefix}{i}", "title": f"t{i}", "text": f"word{i} and more"}
        for i in range(count)
    ]
