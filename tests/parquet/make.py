"""Write the files of this folder: python tests/parquet/make.py (pyarrow==26.0.1)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
BODY = ["to be", "or not", "tö be", "", "to be"]
TABLE = pa.table({"id": pa.array(range(5), pa.int64()), "body": BODY, "words": [t.split() for t in BODY]})
for codec in ("snappy", "zstd", "none", "gzip"):
    # Several row groups; a dictionary in all but one.
    pq.write_table(TABLE, HERE / f"{codec}.parquet", compression=codec, row_group_size=2, use_dictionary=codec != "none")
pq.write_table(pa.table({"text": ["to be", None]}), HERE / "null.parquet")
