"""Fingerprints of tables: equal rows in equal order have equal fingerprints, whatever file they came from."""

import hashlib

import pandas as pd


def table_fingerprint(table: pd.DataFrame) -> str:
    """Hex digest of a table's columns and rows, in order; the index does not count."""
    digest = hashlib.sha256("\n".join(map(str, table.columns)).encode())
    digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()
