"""Reads and writes pocket files: safetensors files whose tensors are used where they lie (docs/format.md)."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn, TypeVar

import numpy as np

from . import _core
from .errors import PocketFileError
from .graph import Array, Graph, with_kept_dtype
from .layout import ALIGNMENT, round_up
from .metadata import Field, are_sizes, brief, check_fields, check_task, check_texts, object_of, one_of

FORMAT, VERSION = "pocketformer", "2"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_TENSORS = 65_536
TOKENIZER = "tokenizer.json"
DTYPES: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class PocketFile:
    """An open pocket file. The arrays of ``graph.params`` are read-only views of one memory map."""

    path: str
    graph: Graph
    program: _core.Program
    model: dict[str, Any]
    text: dict[str, Any]
    _tokenizer: Array | None

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    def tokenizer(self) -> bytes | None:
        """The text of ``tokenizer.json``, or None in a file without one; copied from the map at each call."""
        return None if self._tokenizer is None else self._tokenizer.tobytes()


def read_pocket(path: str | os.PathLike[str], isa: str = "", copy: bool = False, kv: str | None = None) -> PocketFile:
    """Maps the file, or with ``copy`` reads it into memory of its own, and checks all but the large weights' values.

    ``isa`` is the instruction set of the program; empty takes POCKETFORMER_ISA or the best one. ``kv`` is the dtype of
    kept keys and values, int8, fp16 or fp32; None: as the file says.

    Raises PocketFileError when the file breaks the format, OSError when it cannot be opened, ValueError when this CPU
    lacks the ``isa`` or the model cannot have that ``kv``.
    """
    isa = _core.Kernels(isa).isa
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, data_start = _read_header(file, size)
            metadata = _metadata(header)
            entries = _entries(header, size - data_start)
            content = _copied(file, size) if copy else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        params = {
            name: np.frombuffer(content, dtype, count, data_start + begin).reshape(shape)
            for name, dtype, shape, count, begin in entries
        }
        return _assemble(os.fspath(path), metadata, params, isa, kv)
    except PocketFileError as error:
        raise PocketFileError(
            f"{os.fspath(path)}: {error} (damaged, or not a pocket file: compress the model again)"
        ) from None


def _copied(file: io.BufferedReader, size: int) -> memoryview:
    """The whole file in pages of this process: aligned as the mapped file is, and nobody else can change them."""
    pages = memoryview(mmap.mmap(-1, size))
    file.seek(0)
    filled = file.readinto(pages)
    if filled != size:
        raise PocketFileError(f"the file shrank from {size} to {filled} bytes while it was read")
    return pages.toreadonly()


def write_pocket(
    path: str | os.PathLike[str],
    graph: Graph,
    model: dict[str, Any],
    text: dict[str, Any],
    tokenizer_json: bytes | None,
) -> None:
    """Writes a packed ``graph`` with its metadata; ``path`` holds the old content or the new, never a mixture.

    Raises PocketFileError, before anything is written, when the graph or the metadata break the format.
    """
    _judged(lambda: _core.check_graph(graph.description(), {name: _facts(a) for name, a in graph.params.items()}))
    check_texts(model, text)
    tensors = dict(graph.params)
    if tokenizer_json is not None:
        _parse("tokenizer_json", tokenizer_json)
        padded = tokenizer_json.ljust(round_up(len(tokenizer_json), ALIGNMENT))
        tensors[TOKENIZER] = np.frombuffer(padded, np.uint8)
    header = _header(graph, model, text, tensors)
    with _replacing(os.fspath(path)) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def _header(graph: Graph, model: dict[str, Any], text: dict[str, Any], tensors: dict[str, Array]) -> bytes:
    parts = graph.description()
    shared = {key: parts.pop(key) for key in ("weights", "states")}
    sections = {"graphs": {"main": parts}, **shared, "model": model, "text": text}
    metadata = {"format": FORMAT, "version": VERSION, **{key: _dump(value) for key, value in sections.items()}}
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        if array.nbytes % ALIGNMENT:
            raise PocketFileError(f"tensor {name!r} has {array.nbytes} bytes, not a multiple of {ALIGNMENT}; pack it")
        begin, end = end, end + array.nbytes
        dtype = _DTYPE_NAMES[array.dtype.newbyteorder("<")]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    encoded = _dump(entries).encode()
    header = encoded.ljust(round_up(8 + len(encoded), ALIGNMENT) - 8)
    if len(header) > MAX_HEADER_BYTES or len(tensors) > MAX_TENSORS:
        raise PocketFileError(
            f"{len(tensors)} tensors and a header of {len(header)} bytes are too many; split the model"
        )
    return header


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when the block ends, and vanishes when it raises or the process dies."""
    folder, name = os.path.split(path)
    folder = folder or os.curdir
    temporary = os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")
    nameless = _open_nameless(folder)
    try:
        with nameless or open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if nameless:  # os.link follows the symbolic link only when given a folder, which an absolute path ignores
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def _open_nameless(folder: str) -> IO[bytes] | None:
    """A new file that has no name yet, so that even a killed process leaves nothing; None where the system has none."""
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except OSError:  # some network and FAT file systems; or the folder is missing, which the next open reports
        return None


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _parse(what: str, text: bytes | str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except PocketFileError as error:
        raise PocketFileError(f"{what} {error}") from None
    except RecursionError:
        raise PocketFileError(f"{what} is nested too deeply; a pocket file needs six levels") from None
    except ValueError as error:  # bad JSON, bad UTF-8, a number of thousands of digits
        raise PocketFileError(f"{what} is not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise PocketFileError(f"has the key {brief(twice)} twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise PocketFileError(f"holds {name}; only finite numbers are allowed")


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise PocketFileError(f"the file has {size} bytes, too few for a header")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise PocketFileError(f"the header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
    if length > size - 8:
        raise PocketFileError(f"the header claims {length} bytes, but only {size - 8} follow")
    if (8 + length) % ALIGNMENT:
        raise PocketFileError(f"data starts at byte {8 + length}, not at a multiple of {ALIGNMENT}")
    encoded = file.read(length)
    if not encoded.startswith(b"{"):
        raise PocketFileError("the header does not start with '{'")
    header = object_of("the header", _parse("the header", encoded))
    if len(header) > MAX_TENSORS + 1:
        raise PocketFileError(f"the header lists {len(header) - 1} tensors; the limit is {MAX_TENSORS}")
    return header, 8 + length


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = object_of("__metadata__", header.pop("__metadata__", None))
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise PocketFileError(f"__metadata__ {brief(key)} is {brief(value)}; it must be a string")
    if metadata.get("format") != FORMAT:
        raise PocketFileError(f"__metadata__ 'format' is {brief(metadata.get('format'))}; it must be {FORMAT!r}")
    if metadata.get("version") != VERSION:
        raise PocketFileError(
            f"__metadata__ 'version' is {brief(metadata.get('version'))}; this release reads version {VERSION!r}"
        )
    missing = next((key for key in ("graphs", "weights", "states", "model", "text") if key not in metadata), None)
    if missing:
        raise PocketFileError(f"__metadata__ has no {missing!r}")
    return metadata


_Entry = tuple[str, "np.dtype[Any]", tuple[int, ...], int, int]

_ENTRY = {
    "dtype": one_of(*DTYPES),
    "shape": Field(lambda shape: are_sizes(shape, 1, 8), "a list of at most 8 integers ≥ 1"),
    "data_offsets": Field(lambda pair: are_sizes(pair, 0, 2) and len(pair) == 2, "a list of two integers ≥ 0"),
}


def _entries(header: dict[str, Any], data_bytes: int) -> list[_Entry]:
    """Name, dtype, shape, elements and first byte of each tensor; together they cover the data exactly once."""
    result: list[_Entry] = []
    extents: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        what = f"tensor {brief(name)}"
        check_fields(what, object_of(what, entry), _ENTRY)
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        count = 1
        for dimension in shape:  # Python's integers cannot overflow; the comparison with the extent bounds the product
            count *= dimension
        if end - begin != count * dtype.itemsize:
            raise PocketFileError(f"{what} of {entry['dtype']} {list(shape)} does not fit its {end - begin} bytes")
        if (end - begin) % ALIGNMENT:
            raise PocketFileError(f"{what} has {end - begin} bytes, not a multiple of {ALIGNMENT}")
        extents.append((begin, end, what))
        result.append((name, dtype, shape, count, begin))
    position = 0
    for begin, end, what in sorted(extents):
        if begin != position:
            raise PocketFileError(f"{what} starts at byte {begin} of the data, the tensor before ends at {position}")
        position = end
    if position != data_bytes:
        raise PocketFileError(f"the tensors span {position} bytes, but the file holds {data_bytes} bytes of data")
    return result


def _assemble(path: str, metadata: dict[str, str], params: dict[str, Array], isa: str, kv: str | None) -> PocketFile:
    graphs, weights, model, text = (
        object_of(key, _parse(key, metadata[key])) for key in ("graphs", "weights", "model", "text")
    )
    main = object_of("graphs main", graphs.get("main"))
    parts = ("domains", "inputs", "ops", "output")
    if set(graphs) != {"main"} or set(main) != set(parts):
        raise PocketFileError(f"graphs holds {brief(graphs)}; it must hold 'main' alone, with {', '.join(parts)}")
    check_texts(model, text)
    tokenizer = params.pop(TOKENIZER, None)
    if tokenizer is not None and (tokenizer.dtype != np.uint8 or tokenizer.ndim != 1):
        raise PocketFileError(
            f"tensor {TOKENIZER!r} is {tokenizer.dtype} {list(tokenizer.shape)}; it must be 1-D uint8"
        )
    graph = Graph(params=params, weights=weights, states=_parse("states", metadata["states"]), **main)
    program = _judged(lambda: _core.Program(graph.description(), params, isa))
    check_task(model, program)
    if kv is not None and (wanted := with_kept_dtype(graph, kv)) is not graph:
        graph, program = wanted, _core.Program(wanted.description(), params, isa)
    return PocketFile(path, graph, program, model, text, tokenizer)


T = TypeVar("T")


def _judged(judge: Callable[[], T]) -> T:
    """What the runtime says of a graph; it refuses with ValueError."""
    try:
        return judge()
    except ValueError as error:
        raise PocketFileError(str(error)) from None


def _facts(array: Any) -> tuple[str, list[int]]:
    return array.dtype.name, list(array.shape)
