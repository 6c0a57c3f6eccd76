"""What is kept: recordings and API events, safe before anybody is told so."""

from recorder.store.api import Reading, Store, Writer
from recorder.store.errors import StoreError

__all__ = ["Reading", "Store", "StoreError", "Writer"]
