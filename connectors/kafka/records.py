"""Header names that are not UTF-8: kafka-python (3.0.12) takes such a record for a corrupt one, and never gets past it.

The protocol says that they are strings, but no broker checks it.
Source: https://kafka.apache.org/documentation/#recordbatch, "Record" and "Record Header".
"""

from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint


class ReadableBatch(DefaultRecordBatch):  # type: ignore[misc]
    """Bytes of a header's name that are not ASCII become "?" where the name is not UTF-8; all else stays as it is."""

    _buffer: bytearray
    _pos: int

    def _read_msg(self) -> Any:
        start = self._pos
        try:
            return super()._read_msg()
        except UnicodeDecodeError:
            _mend_names(self._buffer, start)
            self._pos = start
            return super()._read_msg()


def read_any_header_name() -> None:
    """For all clients of this process: kafka-python chooses the class of a batch by the name in its module."""
    memory_records.DefaultRecordBatch = ReadableBatch


def _mend_names(buffer: bytearray, at: int) -> None:
    """Of the record that begins there, with as many bytes as before. Raises ValueError or IndexError where its lengths lie."""
    length, at = decode_varint(buffer, at)
    end = at + length
    at += 1  # attributes
    for _ in ("timestamp", "offset"):
        _, at = decode_varint(buffer, at)
    for _ in ("key", "value"):
        at = _skip(buffer, at)
    count, at = decode_varint(buffer, at)
    for _ in range(count):
        size, at = decode_varint(buffer, at)
        if not 0 <= size <= end - at:
            raise ValueError(f"a header's name of {size} bytes in a record of {length}")
        name = bytes(buffer[at : at + size])
        try:
            name.decode()
        except UnicodeDecodeError:
            buffer[at : at + size] = bytes(byte if byte < 128 else ord("?") for byte in name)
        at = _skip(buffer, at + size)


def _skip(buffer: bytearray, at: int) -> int:
    """Past a length and as many bytes; -1 stands for null."""
    size, at = decode_varint(buffer, at)
    return at + max(0, int(size))
