"""NPY and NPZ without pickles. Shape, type and size are read and compared with the bytes before memory is taken.

Source: numpy.lib.format (NPY 1.0 and 2.0), APPNOTE.TXT 6.3 (ZIP).
"""

import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from monitor.errors import BadSample

warnings.filterwarnings("ignore", message="Reading `.npy` or `.npz` file required")  # headers of Python 2 are read as well

_DTYPES = frozenset({"uint8", "uint16", "float16", "float32", "float64"})
_MOST_MEMBERS = 64
_CENTRAL_RECORD = b"PK\x01\x02"


def read_array(payload: bytes, max_pixels: int) -> NDArray[Any]:
    """One NPY file. Raises BadSample."""
    return _read(io.BytesIO(payload), len(payload), max_pixels)


def read_archive(payload: bytes, names: Sequence[str], max_pixels: int) -> dict[str, NDArray[Any]]:
    """Those of `names` that an NPZ holds; other members are not unpacked. Raises BadSample."""
    # zipfile would build an object for each of the 300,000 members that 16 MB can name
    if payload.count(_CENTRAL_RECORD) > _MOST_MEMBERS:
        raise BadSample("too_large", f"NPZ with more than {_MOST_MEMBERS} members")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name not in names:
                    continue
                # the others unpack without bound, however little is asked of them
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BadSample("unsupported", f"NPZ member {info.filename}: compression {info.compress_type}; stored or deflated is read")
                with archive.open(info) as member:
                    arrays[name] = _read(member, info.file_size, max_pixels)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError) as error:
        raise BadSample("undecodable", f"broken NPZ: {error}") from error
    return arrays


def _read(file: IO[bytes], size: int, max_pixels: int) -> NDArray[Any]:
    """`size` is what the file claims to have in all; one byte more is asked for, so that a lie is found and bounded."""
    shape, fortran, dtype, header = _header(file)
    if dtype.hasobject or dtype.name not in _DTYPES:
        raise BadSample("unsupported", f"array of {str(dtype)[:60]}; {', '.join(sorted(_DTYPES))} are read")
    if 0 in shape or not shape:
        raise BadSample("empty", f"array of shape {shape}")
    if min(shape) < 0 or len(shape) > 3:
        raise BadSample("undecodable", f"array of shape {str(shape)[:60]}")
    if shape[0] * (shape[1] if len(shape) > 1 else 1) > max_pixels or math.prod(shape[2:]) > 4:
        raise BadSample("too_large", f"array of shape {shape}; this source takes at most {max_pixels} pixels of at most 4 values")
    expected = math.prod(shape) * dtype.itemsize
    if size - header != expected:
        raise BadSample("undecodable", f"array of shape {shape} and {dtype} needs {expected} bytes, there are {size - header}")
    data = file.read(expected + 1)
    if len(data) != expected:
        raise BadSample("undecodable", f"array of shape {shape} and {dtype} needs {expected} bytes, {len(data)} were unpacked")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """shape, Fortran order, dtype, and the bytes that the header takes."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise BadSample("unsupported", f"NPY version {version}; 1.0 and 2.0 are read")
        # It parses literals only, at most 10,000 characters of them.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return shape, fortran, dtype, file.tell()
    except BadSample:
        raise
    except Exception as error:  # the literal parser raises nearly anything: SyntaxError, RecursionError, MemoryError, ...
        raise BadSample("undecodable", f"broken NPY header: {str(error)[:200]}") from error
