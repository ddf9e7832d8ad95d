"""Events to a folder: one JSON file each."""

from collections.abc import Sequence

from connectors.cloudevents import encode
from connectors.files import safe_name, sync_folder, write_durably
from connectors.folder.options import FolderSinkOptions
from connectors.folder.writer import FolderWriter
from connectors.maps import place_in
from monitor.errors import Disconnected, Rejected
from monitor.ports import Context
from monitor.types import Event


class FolderSink(FolderWriter):
    """See monitor.ports.Sink. Confirmed is what would survive a power cut."""

    def __init__(self, options: FolderSinkOptions, context: Context) -> None:
        super().__init__(options.path)
        self._options = options
        self._context = context
        self._place = place_in(options.maps.path) if options.maps is not None else None

    def _send(self, events: Sequence[Event]) -> None:
        rejected: list[Rejected] = []
        for event in events:
            try:
                self._write(event)
            except Rejected as error:
                rejected.append(error)
            except OSError as error:
                raise Disconnected(f"event {event.id} cannot be written to {self._path}: {error}", "lost") from error
        try:
            sync_folder(self._path)
        except OSError as error:
            raise Disconnected(f"folder {self._path} cannot be synced: {error}", "lost") from error
        if rejected:
            raise Rejected("; ".join(map(str, rejected)), [name for error in rejected for name in error.events])

    def _write(self, event: Event) -> None:
        path = self._path / f"{safe_name(event.id)}.{event.type.split('.')[1]}.json"
        if not path.exists():
            write_durably(path, encode(event, max_bytes=self._options.max_bytes, place=self._place, report=self._context.report), sync=False)
