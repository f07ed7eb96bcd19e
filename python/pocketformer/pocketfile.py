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
from .graph import Array, Graph
from .layout import ALIGNMENT, round_up

FORMAT, VERSION = "pocketformer", "2"
TASKS = (
    *("embed", "embed_sparse", "embed_tokens", "classify", "tag", "answer", "fill_mask", "features"),
    *("classify_image", "embed_image", "generate"),
)
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_TENSORS = 65_536
TOKENIZER = "tokenizer.json"
DTYPES: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Field:
    """What a JSON value must be."""

    accepts: Callable[[Any], bool]
    expected: str


def integer(low: int, high: int = 2**31 - 1) -> Field:
    return Field(lambda value: type(value) is int and low <= value <= high, f"an integer in {low}…{high}")


def one_of(*choices: str) -> Field:
    return Field(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


_TEXT = Field(lambda value: isinstance(value, str), "a string")
_MODEL = {
    "name": _TEXT,
    "family": Field(lambda value: isinstance(value, str) and value != "", "a name"),
    "task": one_of(*TASKS),
    "labels": Field(
        lambda value: value is None or (isinstance(value, list) and all(isinstance(label, str) for label in value)),
        "a list of strings or null",
    ),
    "params": integer(0, 2**63 - 1),
    "weights": one_of("int8", "int4", "fp32"),
}
OUTPUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("embed_sparse", "classify", "classify_image"), ("one",)),
    "embed": ("one", "selected"),
    "embed_image": ("one", "ragged", "grid"),
    **dict.fromkeys(("embed_tokens", "tag", "answer"), ("ragged",)),
    **dict.fromkeys(("fill_mask", "generate"), ("selected",)),
}
"""The kinds of domain that a task's result may have."""


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


def read_pocket(path: str | os.PathLike[str], isa: str = "", copy: bool = False) -> PocketFile:
    """Maps the file, or with ``copy`` reads it into memory of its own, and checks all but the large weights' values.

    ``isa`` is the instruction set of the program; empty takes POCKETFORMER_ISA or the best one. Raises PocketFileError
    when the file breaks the format, OSError when it cannot be opened, ValueError when this CPU lacks the ``isa``.
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
        return _assemble(os.fspath(path), metadata, params, isa)
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
    _check_texts(model, text)
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


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PocketFileError(f"{what} is {brief(value)}; it must be an object")
    return value


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
    header = _object("the header", _parse("the header", encoded))
    if len(header) > MAX_TENSORS + 1:
        raise PocketFileError(f"the header lists {len(header) - 1} tensors; the limit is {MAX_TENSORS}")
    return header, 8 + length


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = _object("__metadata__", header.pop("__metadata__", None))
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
    "shape": Field(lambda shape: _are_sizes(shape, 1, 8), "a list of at most 8 integers ≥ 1"),
    "data_offsets": Field(lambda pair: _are_sizes(pair, 0, 2) and len(pair) == 2, "a list of two integers ≥ 0"),
}


def _are_sizes(value: Any, low: int, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and low <= n < 2**63 for n in value)


def _entries(header: dict[str, Any], data_bytes: int) -> list[_Entry]:
    """Name, dtype, shape, elements and first byte of each tensor; together they cover the data exactly once."""
    result: list[_Entry] = []
    extents: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        what = f"tensor {brief(name)}"
        check_fields(what, _object(what, entry), _ENTRY)
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


def _assemble(path: str, metadata: dict[str, str], params: dict[str, Array], isa: str) -> PocketFile:
    graphs, weights, model, text = (
        _object(key, _parse(key, metadata[key])) for key in ("graphs", "weights", "model", "text")
    )
    main = _object("graphs main", graphs.get("main"))
    parts = ("domains", "inputs", "ops", "output")
    if set(graphs) != {"main"} or set(main) != set(parts):
        raise PocketFileError(f"graphs holds {brief(graphs)}; it must hold 'main' alone, with {', '.join(parts)}")
    _check_texts(model, text)
    tokenizer = params.pop(TOKENIZER, None)
    if tokenizer is not None and (tokenizer.dtype != np.uint8 or tokenizer.ndim != 1):
        raise PocketFileError(
            f"tensor {TOKENIZER!r} is {tokenizer.dtype} {list(tokenizer.shape)}; it must be 1-D uint8"
        )
    graph = Graph(params=params, weights=weights, states=_parse("states", metadata["states"]), **main)
    program = _judged(lambda: _core.Program(graph.description(), params, isa))
    _check_task(model, program)
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


def _check_task(model: dict[str, Any], program: _core.Program) -> None:
    """The result is what the task works on, and there is a label for each column where there are labels."""
    task, labels, columns = model["task"], model["labels"], program.output_width
    if task in OUTPUTS and program.output_kind not in OUTPUTS[task]:
        raise PocketFileError(
            f"task is {task!r}, but the graph's output has the domain {program.output_domain!r}; it needs one of kind "
            f"{' or '.join(OUTPUTS[task])!r}"
        )
    if task in ("classify", "tag", "classify_image") and labels and len(labels) != columns:
        raise PocketFileError(f"labels has {len(labels)} entries, but the graph's output {columns} columns")
    if task == "answer" and columns != 2:
        raise PocketFileError(f"task is 'answer', but the graph's output has {columns} columns; it needs 2")


def check_fields(where: str, record: dict[str, Any], fields: dict[str, Field]) -> None:
    """``record`` has exactly ``fields``, each of its kind."""
    for name, field in fields.items():
        if name not in record:
            raise PocketFileError(f"{where}: field {name!r} is missing; it must be {field.expected}")
        if not field.accepts(record[name]):
            raise PocketFileError(f"{where}: field {name!r} is {brief(record[name])}; it must be {field.expected}")
    unknown = [name for name in record if name not in fields]
    if unknown:
        raise PocketFileError(f"{where}: field {unknown[0]!r} is unknown; known are {', '.join(fields)}")


def brief(value: Any) -> str:
    """A JSON value for a message, in few characters however large or deep it is."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:59]}…")
    return "an integer of many digits" if type(value) is int and abs(value) >= 10**30 else repr(value)


_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_SIDE = integer(1, 1 << 14)
_RESIZE = ({"shortest": _SIDE}, {"height": _SIDE, "width": _SIDE})
_IMAGE = {
    "height": _SIDE,
    "width": _SIDE,
    "resize": Field(
        lambda value: value is None or any(_are_fields(value, fields) for fields in _RESIZE),
        f"null, an object with 'shortest', or one with 'height' and 'width', each {_SIDE.expected}",
    ),
    "resample": one_of(*_RESAMPLING),
    "crop": Field(lambda value: isinstance(value, bool), "true or false"),
    "channels": one_of("rgb", "bgr"),
    "scale": Field(lambda value: _are_numbers([value], 1), "a number"),
    "mean": Field(lambda value: _are_numbers(value, 3), "a list of three numbers"),
    "std": Field(lambda value: _are_numbers(value, 3) and all(value), "a list of three numbers that are not 0"),
}


_SAMPLING = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty"),
        Field(lambda value: _are_numbers([value], 1), "a number"),
    ),
    "top_k": integer(0),
}
_GENERATE = {
    "end_token_ids": Field(lambda value: _are_sizes(value, 0, 64), "a list of at most 64 integers ≥ 0"),
    "sampling": Field(lambda value: isinstance(value, dict) and set(value) <= set(_SAMPLING), "an object of settings"),
    "chat_template": Field(lambda value: value is None or isinstance(value, str), "a string or null"),
    "special_tokens": Field(
        lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
        "an object of strings",
    ),
}


def _are_fields(value: Any, fields: dict[str, Field]) -> bool:
    return isinstance(value, dict) and set(value) == set(fields) and all(fields[k].accepts(v) for k, v in value.items())


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(n) in (int, float) for n in value)


_POOLED = Field(
    lambda value: integer(0).accepts(value) or value in ("highest", "last"), "a token id, 'highest' or 'last'"
)


def _check_texts(model: dict[str, Any], text: dict[str, Any]) -> None:
    check_fields("model", {name: value for name, value in model.items() if name in _MODEL}, _MODEL)
    if model["task"] in ("classify_image", "embed_image"):
        check_fields("model image", _object("model image", model.get("image")), _IMAGE)
    if model["task"] == "embed" and "pooled_token" in text:
        check_fields("text", {"pooled_token": text["pooled_token"]}, {"pooled_token": _POOLED})
    for key, low in (("max_length", 1), ("padded_length", 1), ("pad_token_id", 0), ("mask_token_id", 0)):
        if text.get(key) is not None:
            check_fields("text", {key: text[key]}, {key: integer(low)})
    if model["task"] == "generate":
        check_fields("text", {key: value for key, value in text.items() if key in _GENERATE}, _GENERATE)
        check_fields("text sampling", text["sampling"], {key: _SAMPLING[key] for key in text["sampling"]})
