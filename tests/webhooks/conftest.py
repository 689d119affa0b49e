from tests.registry.conftest import sqlite_store, store

__all__ = ["sqlite_store", "store"]
