"""Ragged batches, readers, encoders and loading. Names are imported when first used: tables need pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import importer

if TYPE_CHECKING:
    from .encoders import AddressEncoder as AddressEncoder
    from .encoders import Standardizer as Standardizer
    from .encoders import TokenEncoder as TokenEncoder
    from .encoders import ValuesAndMask as ValuesAndMask
    from .encoders import event_tokens as event_tokens
    from .encoders import last_measured as last_measured
    from .event_cameras import address_events as address_events
    from .event_cameras import read_dat as read_dat
    from .events import EventBatch as EventBatch
    from .inputs import as_events as as_events
    from .inputs import with_queries as with_queries
    from .labels import Labels as Labels
    from .labels import read_labels as read_labels
    from .loading import EventDataset as EventDataset
    from .loading import LengthBatchSampler as LengthBatchSampler
    from .loading import Sample as Sample
    from .loading import collate as collate
    from .storage import StoredEvents as StoredEvents
    from .tables import Table as Table
    from .tables import TableFormat as TableFormat
    from .tables import iter_sequences as iter_sequences
    from .tables import read_table as read_table
    from .tables import scan_channels as scan_channels
    from .tables import scan_time_type as scan_time_type

_HOME = {
    "AddressEncoder": ".encoders",
    "EventBatch": ".events",
    "EventDataset": ".loading",
    "Labels": ".labels",
    "LengthBatchSampler": ".loading",
    "Sample": ".loading",
    "Standardizer": ".encoders",
    "StoredEvents": ".storage",
    "Table": ".tables",
    "TableFormat": ".tables",
    "TokenEncoder": ".encoders",
    "ValuesAndMask": ".encoders",
    "address_events": ".event_cameras",
    "as_events": ".inputs",
    "collate": ".loading",
    "event_tokens": ".encoders",
    "iter_sequences": ".tables",
    "last_measured": ".encoders",
    "read_dat": ".event_cameras",
    "read_labels": ".labels",
    "read_table": ".tables",
    "scan_channels": ".tables",
    "scan_time_type": ".tables",
    "with_queries": ".inputs",
}

__all__ = [*_HOME]


__getattr__ = importer(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
