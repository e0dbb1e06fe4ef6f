"""Conversations in from the files of other programs, and out again.

`import_paths` and `export_conversations` are all that a caller needs; both work on any `ConversationStore`. Files are
named by people who run the program, never by a tool's argument.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatledger.transfer.exporting import ExportSummary, export_conversations
    from chatledger.transfer.importing import import_paths
    from chatledger.transfer.report import ConversationReport, FileReport, ImportReport

__all__ = [
    "ConversationReport",
    "ExportSummary",
    "FileReport",
    "ImportReport",
    "export_conversations",
    "import_paths",
]

_AT = {"export_conversations": "exporting", "ExportSummary": "exporting", "import_paths": "importing"}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a server that shows a transcript needs no reader of foreign formats."""
    if name not in __all__:
        raise AttributeError(name)
    return getattr(import_module(f"chatledger.transfer.{_AT.get(name, 'report')}"), name)
