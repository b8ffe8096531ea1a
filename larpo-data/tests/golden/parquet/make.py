"""Writes the Parquet files beside it. Run by hand where pyarrow is installed: `python make.py`."""
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
PAIRS = [{"prompt": f"{i} + {i} =\n", "chosen": f" {2 * i} é", "rejected": " 0"} for i in range(1, 7)]
LISTS = [
    {"prompt": "2 + 2 =", "responses": [" 4", " 5", ""], "rewards": [1.0, 0.25, -3.0], "ranks": [1, 2, 3]},
    {"prompt": "1 + 1 =", "responses": [" 2", " 3"], "rewards": [1.0, 0.0], "ranks": [1, 2]},
]
CHAT = [{"prompt": [{"role": "user", "content": "2 + 2?"}], "completion": [{"role": "assistant", "content": "4"}]}]


def write(name, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), HERE / f"{name}.parquet", **options)


for codec in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]:
    write(f"pairs-{codec}", PAIRS, compression=codec, row_group_size=4)
write("lists", LISTS, compression="snappy")
write("chat", CHAT, compression="snappy")
(HERE / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
(HERE / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LISTS))
