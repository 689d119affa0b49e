from tests.registry.conftest import http_store, server_uri, sqlite_store, store  # noqa: F401
