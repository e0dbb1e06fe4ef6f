"""Conversations in from the files of other programs, and out again.

`import_paths` and `export_conversations` are all that a caller needs; both work on any `ConversationStore`. Files are
named by people who run the program, never by a tool's argument.
"""

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
