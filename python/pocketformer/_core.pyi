"""The compiled runtime. Arrays must have exactly the dtype and shape given here and be C-contiguous."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]

def isas() -> list[str]:
    """Names of the instruction sets that this build has and this CPU supports, best first."""

def missing_features() -> dict[str, str]:
    """Every instruction set of this build, best first, and the features it needs that this CPU lacks; "" if usable."""

def default_threads() -> int:
    """POCKETFORMER_THREADS or ``read_cpus()["threads"]``. Raises ValueError when the variable is no such number."""

def read_cpus(root: str = "", allowed: list[int] = ...) -> dict[str, Any]:
    """The CPUs this process may use and what is made of them; csrc/core/cpus.h has the rule.

    ``cpus``: ``id``, ``core``, ``strength`` and ``chosen`` of each; ``measure`` of the strength: ``capacity``,
    ``frequency`` or ``none``; ``quota``: CPUs by control groups, 0 without a limit; ``threads``. ``root`` goes before
    /proc and /sys; an empty ``allowed`` takes the affinity mask.
    """

def largest_cache(root: str = "") -> int:
    """Bytes of the largest data cache of the first CPU that may be used; 0 where the machine does not tell."""

def block_rows(rows: int, threads: int, weights_cached: bool) -> int:
    """Rows that the planner has a thread take at a time. ``weights_cached``: a stage's weights stay in a cache."""

def cgroup_cpus(root: str = "") -> int:
    """The tightest control-group quota in CPUs, rounded up; 0 without one. ``root`` goes before /proc and /sys."""

def operators() -> list[dict[str, Any]]:
    """Every operator: ``op``, ``doc`` and ``fields``, each with ``name``, ``type``, ``doc``, ``required``.

    A field that may be left out has a ``default``, a choice its ``choices``, a list the ``fields`` of its records.
    """

def check_graph(graph: dict[str, Any], shapes: dict[str, tuple[str, list[int]]]) -> None:
    """What ``Program`` refuses of a graph whose tensors have these dtypes and shapes; their values are not seen."""

class Program:
    """An immutable model, shared by any number of sessions and threads.

    ``graph`` holds ``domains``, ``inputs``, ``weights``, ``states``, ``ops`` and ``output``; ``tensors`` the packed
    parameters (docs/format.md), each 64-byte aligned. They are used where they lie and kept alive; nothing is copied.
    An empty ``isa`` takes POCKETFORMER_ISA or the best one supported. Raises ValueError for anything that does not fit.
    """

    def __init__(self, graph: dict[str, Any], tensors: dict[str, NDArray[Any]], isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def output_width(self) -> int: ...
    @property
    def output_domain(self) -> str:
        """The domain of the output's rows."""
    @property
    def output_kind(self) -> str:
        """That domain's kind: ``ragged``, ``grid``, ``one`` or ``selected``."""
    @property
    def stages(self) -> int:
        """Stages, at whose ends threads meet."""
    @property
    def meetings(self) -> int:
        """Meetings of threads in a run whose stages are all split by columns."""
    @property
    def stage_weight_bytes(self) -> int:
        """Weights of the stage with most: what every block of rows passes before the next block begins."""
    def work(self, lengths: list[int], selected: int = 0) -> list[dict[str, Any]]:
        """What every step of such a run asks of a machine.

        ``kind``, ``stage`` and ``rows``; ``multiply_adds``, of products ``int8`` or not, ``weight_bytes``, and the
        share of ``zeros`` that they pass over; ``elements`` that are written, those of them that are ``rotated`` or
        ``activated``; ``scores`` of query heads and keys that they see, and ``score_lanes``, the same where sixteen
        queries look at what one of them sees.
        """
    def cache_bytes(self, capacity: int, chunk: int) -> int:
        """``nbytes`` of such a ``StateCache``."""
    def arena_bytes(
        self, lengths: list[int], threads: int, selected: int = 0, mode: str = "auto", block_rows: int = 0
    ) -> int:
        """Bytes that a new session with this ``mode`` and ``block_rows`` allocates to run such a batch.

        ``lengths`` are those of the sequences in the domain that the caller fills, ``selected`` the rows it names.
        """

class StateCache:
    """The keys and values of one conversation: what a program's kept states hold from run to run.

    ``capacity`` is the most tokens that it holds, ``chunk`` the most that one run brings where layers see a window
    only: these keep what later tokens can still see. The memory, ``nbytes``, is taken at once and touched as it fills.
    Raises ValueError for a program without kept states or a capacity above the model's.
    """

    def __init__(self, program: Program, capacity: int, chunk: int) -> None: ...
    def truncate(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens. Raises ValueError where a window has dropped keys of these."""
    def fork(self) -> StateCache:
        """A copy that goes on by itself. Raises RuntimeError, as ``truncate`` does, while a run uses the cache."""
    @property
    def length(self) -> int:
        """Tokens that it holds."""
    @property
    def capacity(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Session:
    """The working memory of one caller at a time; any number of them share a program.

    ``mode`` is ``auto``, ``rows`` or ``columns`` and ``block_rows`` the rows a thread takes at a time (0: the planner's
    choice): how the work is divided, which never changes a bit of the result.
    """

    def __init__(self, program: Program, mode: str = "auto", block_rows: int = 0) -> None: ...
    def run(
        self,
        inputs: dict[str, Any],
        threads: int = 1,
        out: NDArray[np.float32] | None = None,
        caches: list[StateCache] | None = None,
    ) -> NDArray[np.float32]:
        """Runs a batch and returns float32 [rows of the output's domain, output_width], ``out`` if it is given.

        ``inputs`` holds, by name: int32 [rows] or float32 [rows, width] for each input of the graph; int64 offsets
        [sequences + 1] for each ragged domain that is not made from another; int64 row numbers for each selected one.
        None stands for an optional input that is left out. The GIL is released. Raises ValueError when an array does
        not fit the model, RuntimeError when another thread is in this session.

        ``caches``, one for each sequence, hold its earlier rows: positions go on where they end, and afterwards they
        hold this run's rows too. Without them a model that keeps states sees this run alone. After an error or an
        interrupt they hold what they held. Raises ValueError for a cache of another program, one that is given twice
        or is too full, RuntimeError for one that another thread's run is using.
        """
    @property
    def arena_bytes(self) -> int:
        """Bytes held now; they grow to what the largest batch needed."""
    def trim(self) -> None:
        """Gives the memory back; the next run takes what it needs."""
    def rows(self) -> dict[str, int]:
        """Rows of each domain in the last run: of halting ones those that stayed."""
    @property
    def profile(self) -> bool:
        """Whether runs are timed; setting it to True starts from zero."""
    @profile.setter
    def profile(self, on: bool) -> None: ...
    def phases(self) -> dict[str, float]:
        """Seconds by kind of step, summed over threads, since profiling was turned on."""

class Kernels:
    """The kernels of one ISA on numpy arrays, for tests: csrc/kernels/table.h says what each does.

    Arrays start at multiples of 64 bytes; rows are as long as the kernel's layout asks and hold zeros in their padding.
    Results go to the arrays named ``out``, ``q``, ``scale`` and ``cache``. The GIL is kept. Raises ValueError for an
    array or a number that does not fit. An empty ``isa`` takes POCKETFORMER_ISA or the best one supported.
    """

    def __init__(self, isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def activation_offset(self) -> int:
        """What is added to quantized activations: 0 or 128."""
    def quantize_rows(
        self,
        x: _F32,
        q: NDArray[np.uint8],
        scale: _F32,
        k: int,
        rotate: int = 0,
        is_signed: bool = False,
        group: int = 0,
        sum: NDArray[np.int32] | None = None,
    ) -> None:
        """float32 [rows, ≥ k by 16s] → uint8 [rows, ≥ k by 64s], float32 [rows].

        ``is_signed`` leaves out ``activation_offset``; ``sum`` int32 [rows, ≥ k/group] then takes the groups' sums.
        """
    def gemm(
        self,
        x: _F32 | NDArray[np.uint8],
        weight: _F32 | NDArray[np.uint16] | NDArray[np.int8] | NDArray[np.uint8],
        out: _F32,
        k: int,
        *,
        x_scale: _F32 | None = None,
        x_sum: NDArray[np.int32] | None = None,
        scale: _F32 | None = None,
        minimum: _F32 | None = None,
        colsum: NDArray[np.int32] | None = None,
        codebook: NDArray[np.int8] | None = None,
        n: int = -1,
        group: int = 0,
        panel_begin: int = 0,
        panel_end: int = -1,
        bias: _F32 | None = None,
        multiply: _F32 | None = None,
        residual: _F32 | None = None,
        activation: str = "none",
        precise: bool | None = None,
    ) -> None:
        """``out`` [rows, ≥ n] of ``weight``: float32 [panels, k, 16], int8 [panels, ⌈k/4⌉, 16, 4] or two indices into
        ``codebook`` a byte, uint8 [panels, ⌈k/8⌉, 16, 4].

        ``n`` is 16·panels where it is not given. ``x`` is float32 or from ``quantize_rows``, for uint8 weights with
        ``is_signed`` and ``x_sum``. ``scale`` and ``minimum`` are [16·panels], with a ``group`` [panels, k/group, 16].
        ``precise`` is true by default where the product is float32 or ``multiply`` is given.
        """
    def embed(
        self,
        weight: NDArray[np.int8] | NDArray[np.uint16] | _F32,
        scale: _F32 | None,
        index: NDArray[np.int32],
        out: _F32,
        width: int,
        rotate: int = 0,
        accumulate: bool = False,
    ) -> None:
        """``weight`` is [entries, width] or panels; int8 with a ``scale``, else float32 or the bits of fp16."""
    def norm(self, x: _F32, weight: _F32, bias: _F32 | None, out: _F32, width: int, eps: float, kind: str) -> None:
        """``kind`` is ``layer`` or ``rms``."""
    def pool(self, x: _F32, out: _F32, width: int, kind: str, first: int = 0) -> None:
        """``kind`` is ``mean``, ``cls``, ``max``, ``last``, ``mean_sqrt`` or ``weighted_mean``.

        The weighted mean counts row r first + r + 1 times.
        """
    def l2_normalize(self, x: _F32, out: _F32, width: int) -> None: ...
    def rope(
        self,
        x: _F32,
        out: _F32,
        positions: NDArray[np.int32],
        frequency: _F32,
        heads: int,
        head_dim: int,
        factor: float = 1.0,
        column: int = 0,
    ) -> None:
        """Turns pairs (i, i + n) of each head by ``positions`` × ``frequency`` [n]; ``out`` may be ``x``."""
    def quantize_heads(
        self, x: _F32, q: NDArray[np.int8], scale: _F32, head_dim: int, column: int = 0, rotate: int = 0
    ) -> None:
        """``q`` is int8 [rows, heads, stride]; its heads stand side by side in ``x`` from ``column`` on."""
    def store_i8(
        self,
        k: _F32,
        v: _F32,
        cache: tuple[NDArray[Any], ...],
        head_dim: int,
        slot: int = 0,
        k_column: int = 0,
        v_column: int = 0,
        rotate: int = 0,
    ) -> None:
        """``cache`` is the arrays of KeyValuesI8 in its order; ``k`` and ``v`` may be one array."""
    def store_f32(
        self,
        k: _F32,
        v: _F32,
        cache: tuple[_F32, _F32],
        head_dim: int,
        slot: int = 0,
        k_column: int = 0,
        v_column: int = 0,
    ) -> None:
        """``cache`` is keys and values [kv_heads, capacity, stride]."""
    def attention_i8(
        self,
        q: NDArray[np.int8],
        q_scale: _F32,
        cache: tuple[NDArray[Any], ...],
        out: _F32,
        head_dim: int,
        keys: int,
        scale: float,
        first_position: int = 0,
        slot: int = 0,
        left: int = -1,
        right: int = -1,
        bias: _F32 | None = None,
        bias_center: int = 0,
        head_begin: int = 0,
        head_end: int = -1,
        fine: bool = False,
    ) -> None:
        """``left`` and ``right`` bound the keys a query sees, both ends included; −1 is unlimited.

        The softmax is rounded to seven bits, and to fourteen if ``fine``.
        """
    def attention_f32(
        self,
        q: _F32,
        cache: tuple[_F32, _F32],
        out: _F32,
        heads: int,
        head_dim: int,
        keys: int,
        scale: float,
        first_position: int = 0,
        slot: int = 0,
        left: int = -1,
        right: int = -1,
        bias: _F32 | None = None,
        bias_center: int = 0,
        head_begin: int = 0,
        head_end: int = -1,
        column: int = 0,
    ) -> None:
        """As ``attention_i8``; the heads of ``q`` stand side by side from ``column`` on."""

def probe_int8(isa: str = "", milliseconds: int = 50, threads: int = 1, *, bounded_pairs: bool = False) -> float:
    """Peak of ``threads`` threads together in 10⁹ int8 multiply-adds a second: the product's inner operation alone,
    that of weights with ``bounded_pairs`` where asked for, which is another with AVX2 without VNNI.

    The best of many short slices that all threads begin together. Raises RuntimeError when the threads are busy.
    """

def probe_f32(isa: str = "", milliseconds: int = 50, threads: int = 1) -> float:
    """The same in 10⁹ float32 multiply-adds a second."""

def probe_bandwidth(milliseconds: int = 500, bytes: int = 1 << 28, threads: int = 1) -> float:
    """Gigabytes a second at which ``threads`` threads together read ``bytes`` of memory again and again.

    The default is beyond every cache; as many bytes as a model's weights give the speed at which those can be read.
    """

# What pocketformer/kernels.py documents; None stands for an argument that is not given.

def choose_isa(name: str | None) -> str | None:
    """Kernels of this thread's calls of what follows; None is the default. Returns what was chosen before."""

class Weight:
    def __init__(
        self,
        weight: _F32,
        dtype: str,
        group: int,
        rotate: int,
        codebook: NDArray[np.int8] | None,
        bounded_pairs: bool,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def rotate(self) -> int: ...
    @property
    def bounded_pairs(self) -> bool: ...
    @property
    def group(self) -> int | None: ...
    @property
    def scale(self) -> _F32 | None: ...
    def dequantize(self) -> _F32: ...

def matmul(
    x: _F32,
    w: Weight,
    bias: _F32 | None = None,
    activation: str | None = None,
    multiply: _F32 | None = None,
    residual: _F32 | None = None,
    threads: int | None = None,
    out: _F32 | None = None,
) -> _F32: ...
def quantize(x: _F32, like: Weight, threads: int | None = None) -> tuple[NDArray[np.int8], _F32]: ...
def matmul_int8(
    q: NDArray[np.int8], w: Weight, threads: int | None = None, out: NDArray[np.int32] | None = None
) -> NDArray[np.int32]: ...
def attention(
    q: _F32,
    k: _F32,
    v: _F32,
    left: int,
    right: int,
    bias: _F32 | None,
    offsets: NDArray[np.int64] | None,
    dtype: str,
    scale: float | None,
    threads: int | None,
    out: _F32 | None,
    step: int = 1,
    globals: int = 0,
    block: int = 0,
    begins: NDArray[np.int64] | None = None,
    blocks: NDArray[np.int64] | None = None,
    softcap: float | None = None,
) -> _F32: ...

class KeyValueCache:
    def __init__(self, kv_heads: int, head_dim: int, capacity: int, window: int | None) -> None: ...
    def append(self, k: _F32, v: _F32) -> None: ...
    def attend(
        self,
        q: _F32,
        left: int,
        right: int,
        bias: _F32 | None,
        scale: float | None,
        threads: int | None,
        out: _F32 | None,
    ) -> _F32: ...
    def truncate(self, length: int) -> None: ...
    def fork(self) -> KeyValueCache: ...
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def isa(self) -> str: ...

def layer_norm(x: _F32, weight: _F32, bias: _F32 | None, eps: float) -> _F32: ...
def rms_norm(x: _F32, weight: _F32, eps: float) -> _F32: ...
def rope(x: _F32, positions: NDArray[np.int32], frequencies: _F32, factor: float) -> _F32: ...
def activate(x: _F32, activation: str) -> _F32: ...
def softmax(x: _F32, out: _F32 | None = None) -> _F32:
    """``out`` may be ``x``."""
