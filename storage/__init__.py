"""Conversations in Postgres, for Python programs: `from chatledger.storage import ConversationStore, NewMessage`.

The names are imported when they are first used, so that a part of the package costs no more than itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatledger.storage.errors import StorageError as StorageError
    from chatledger.storage.limits import Limits as Limits
    from chatledger.storage.records import NewMessage as NewMessage
    from chatledger.storage.store import ConversationStore as ConversationStore

_HOME = {"ConversationStore": "store", "Limits": "limits", "NewMessage": "records", "StorageError": "errors"}
__all__ = ["ConversationStore", "Limits", "NewMessage", "StorageError"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
