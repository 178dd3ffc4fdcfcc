"""Watches a context compute, and sums the squares of what its weights are multiplied with.

llama.cpp calls `cb_eval` (context parameters) for every node of a graph: first to ask whether its data are
wanted, then, where they are, with the data. What is collected is what llama.cpp's ``tools/imatrix/imatrix.cpp``
collects. The node is a ``ggml_tensor``, whose layout belongs to the version of ggml; `check_layout` compares it
with the library that is loaded.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.errors import InvalidModelError, NativeError
from llama_magic.native.library import dll, lib

__all__ = ["ActivationSums", "check_layout"]

#: GGML_MAX_DIMS, GGML_MAX_OP_PARAMS / 4, GGML_MAX_SRC, GGML_MAX_NAME and the size of `ggml_object` (ggml.h).
_DIMS, _PARAMS, _SOURCES, _NAME, _OBJECT = 4, 16, 10, 64, 32
_F32 = 0
#: The tool leaves batches of fewer rows out.
_LEAST_ROWS = 16
#: What llama.cpp's graphs call the last node before the output matrix.
_LAST = b"result_norm"


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _DIMS),
        ("nb", ctypes.c_size_t * _DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * _PARAMS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(dll, name)
    function.restype = restype
    function.argtypes = list(argtypes)
    return function


_op_name = _function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
_nbytes = _function("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
_is_host = _function("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)
_get = _function("ggml_backend_tensor_get", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


@functools.cache
def check_layout() -> tuple[int, int]:
    """Return the numbers of the operations MUL_MAT and MUL_MAT_ID.

    Raises
    ------
    NativeError
        The library's ``ggml_tensor`` differs from the one that is described here.
    """
    overhead = _function("ggml_tensor_overhead", ctypes.c_size_t)
    if overhead() != _OBJECT + ctypes.sizeof(_Tensor) or not _product_reads_right():
        raise NativeError(
            "this version of llama.cpp lays its tensors out in a way that llama_magic does not know; "
            "install a version of llama-cpp-python that this llama_magic was made for"
        )
    count = _function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    numbers: dict[bytes, int] = {}
    for number in range(64):
        numbers.setdefault(count(number), number)
        if b"MUL_MAT_ID" in numbers:
            break
    return numbers[b"MUL_MAT"], numbers[b"MUL_MAT_ID"]


def _product_reads_right() -> bool:
    """Build a product of two matrices, which is not computed, and see whether its fields are where they should be."""
    init = _function("ggml_init", ctypes.c_void_p, _InitParams)
    free = _function("ggml_free", None, ctypes.c_void_p)
    matrix = _function(
        "ggml_new_tensor_2d", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    )
    product = _function("ggml_mul_mat", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    rename = _function("ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    context = init(_InitParams(1 << 16, None, True))
    try:
        weights, inputs = matrix(context, _F32, 7, 3), matrix(context, _F32, 7, 5)
        rename(inputs, b"inputs")
        result = _Tensor.from_address(product(context, weights, inputs))
        read = _Tensor.from_address(inputs)
        return (
            _op_name(result.op) == b"MUL_MAT"
            and list(result.src[:3]) == [weights, inputs, None]
            and list(result.ne) == [3, 5, 1, 1]
            and list(read.ne) == [7, 5, 1, 1]
            and list(read.nb) == [4, 28, 140, 140]
            and (read.type, read.name, read.buffer) == (_F32, b"inputs", None)
        )
    finally:
        free(context)


class ActivationSums:
    """Collects the sums of squares of one or several decodes.

    A decode that failed or was stopped half-way must not count: what a decode brought is kept apart until `commit`.

    Parameters
    ----------
    cancelled
        Asked now and then while the model computes; where it is true, `stop` is called.
    process_output
        Collect for the output matrix, too.
    host_memory
        Read activations where they are, if the processor can; False always copies them, as for an accelerator.

    Attributes
    ----------
    sums
        By the name of the weight: float64 of shape (matrices, columns).
    counts
        Rows that went into each matrix, int64; one number for weights without experts.
    skip_output
        The logits of the next decode are not needed: its graphs end before the output matrix, where they name that
        place as llama.cpp's do.
    stop
        Ends the running decode: set it to the context's `abort`.
    error
        What went wrong in the callback, to be raised after the decode.
    """

    def __init__(
        self, cancelled: Callable[[], bool], *, process_output: bool = False, host_memory: bool = True
    ) -> None:
        self._mul_mat, self._mul_mat_id = check_layout()
        self._cancelled = cancelled
        self._process_output = process_output
        self._host_memory = host_memory
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self.stop: Callable[[], None] = lambda: None
        self.skip_output = False
        self.error: BaseException | None = None
        self._new: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = {}
        self._last: tuple[Any, ...] = ()
        self._last_names: set[str] = set()
        self._last_values: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None = None
        self.callback: Any = lib.ggml_backend_sched_eval_callback(self._evaluate)

    def start(self, sums: Mapping[str, npt.NDArray[np.float64]], counts: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Go on from sums that were collected before."""
        self.sums = {name: values.copy() for name, values in sums.items()}
        self.counts = {name: values.copy() for name, values in counts.items()}

    def commit(self) -> None:
        """Add what the last decode brought.

        Raises
        ------
        InvalidModelError
            Something is not finite, or of another size than before.
        """
        for name, (sums, counts) in self._new.items():
            if not np.isfinite(sums).all():
                raise InvalidModelError(
                    f"the activations that {name} is multiplied with are not finite: the file is damaged, or its "
                    "numbers are too large for the type that this device computes with (try -dev none)"
                )
            old = self.sums.get(name)
            if old is None:
                self.sums[name], self.counts[name] = sums, counts
            elif old.size != sums.size:
                raise InvalidModelError(f"{name} has {sums.size:,} columns in this model, {old.size:,} before")
            else:
                self.sums[name] = old.reshape(sums.shape) + sums
                self.counts[name] = _add_counts(self.counts[name], counts)
        self.discard()

    def discard(self) -> None:
        """Forget what the last decode brought."""
        self._new.clear()
        self._last, self._last_values = (), None
        self._last_names.clear()

    # -- called by ggml ----------------------------------------------------------------------------------------

    def _evaluate(self, address: int, ask: bool, _user_data: object) -> bool:
        """Answer whether a node's data are wanted, or take them; False in the latter case stops the decode."""
        try:
            return self._ask(_Tensor.from_address(address)) if ask else self._take(_Tensor.from_address(address))
        except BaseException as error:  # noqa: BLE001 - nothing may be raised into C
            self.error = error
            self.stop()
            return False

    def _ask(self, node: Any) -> bool:
        if node.op == self._mul_mat_id:
            pass
        elif node.op != self._mul_mat:
            return bool(self.skip_output and node.name == _LAST)
        else:
            inputs = _Tensor.from_address(node.src[1])
            if inputs.ne[1] < _LEAST_ROWS or inputs.type != _F32:
                return False
            name = _weight_name(node)
            if not (name.startswith("blk.") or (self._process_output and name == "output.weight")):
                return False
        return not self._taken_already(node)

    def _taken_already(self, node: Any) -> bool:
        """Count the inputs that were summed last for this weight, too, where it has the same: query, key and value do.

        A weight that comes again begins another graph, in which the same address holds other inputs.
        """
        name = _weight_name(node)
        if self._last_values is None or name in self._last_names or self._last != self._inputs(node):
            return False
        self._count(name, *self._last_values)
        self._last_names.add(name)
        return True

    def _inputs(self, node: Any) -> tuple[Any, ...]:
        weights, inputs = _Tensor.from_address(node.src[0]), _Tensor.from_address(node.src[1])
        matrices = (weights.ne[2], weights.ne[3])
        ids = node.src[2] if node.op == self._mul_mat_id else None
        return (node.op, node.src[1], inputs.data, inputs.name, tuple(inputs.ne), matrices, ids)

    def _take(self, node: Any) -> bool:
        if self._cancelled():
            self.stop()
            return False
        if node.op not in (self._mul_mat, self._mul_mat_id):
            return False
        weights, name = _Tensor.from_address(node.src[0]), _weight_name(node)
        rows = self._rows(node.src[1])
        if node.op == self._mul_mat_id:
            found = _sum_experts(rows, self._ids(node.src[2]), weights.ne[2])
        else:
            found = _sum_rows(rows, weights.ne[2], weights.ne[3])
        self._count(name, *found)
        self._last, self._last_values = self._inputs(node), found
        self._last_names = {name}
        return True

    def _count(self, name: str, sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> None:
        there = self._new.get(name)
        if there is None:
            self._new[name] = (sums, counts)
        elif there[0].shape != sums.shape:
            raise InvalidModelError(f"{name} is used as {there[0].shape} and as {sums.shape} by the same model")
        else:
            # never in place: several weights may share what is in `there`
            self._new[name] = (there[0] + sums, there[1] + counts)

    def _rows(self, address: int) -> npt.NDArray[np.float32]:
        """Return a tensor's values, shape (ne3, ne2, ne1, ne0), without copying them where that can be."""
        tensor = _Tensor.from_address(address)
        if tensor.type != _F32 or tensor.nb[0] != 4:
            raise NativeError("the inputs of a matrix product are not rows of 32-bit numbers")
        data = self._memory(address, tensor)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        rows: npt.NDArray[np.float32] = np.ndarray(shape, np.float32, data, strides=strides)
        return rows

    def _ids(self, address: int) -> npt.NDArray[np.int32]:
        """Return the experts that each token was sent to, shape (tokens, experts used)."""
        tensor = _Tensor.from_address(address)
        shape, strides = tuple(tensor.ne)[1::-1], tuple(tensor.nb)[1::-1]
        ids: npt.NDArray[np.int32] = np.ndarray(shape, np.int32, self._memory(address, tensor), strides=strides)
        return ids

    def _memory(self, address: int, tensor: Any) -> Any:
        size = _nbytes(address)
        if self._host_memory and tensor.buffer and _is_host(tensor.buffer):
            return (ctypes.c_char * size).from_address(tensor.data)
        copy = ctypes.create_string_buffer(size)
        _get(address, copy, 0, size)
        return copy


def _add_counts(old: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Add counts up; files of older versions have one for all experts, or one for each matrix of a dense tensor."""
    if len(new) == 1 and (old == old[0]).all():
        old = old[:1]
    count = max(len(old), len(new))
    total: npt.NDArray[np.int64] = np.broadcast_to(old, count) + np.broadcast_to(new, count)
    return total


def _weight_name(node: Any) -> str:
    """Return the weight's name without what a scheduler puts around that of a copy: ``CUDA0#blk.0.attn_k.weight#0``."""
    name: str = _Tensor.from_address(node.src[0]).name.decode("utf-8", "replace")
    parts = name.split("#", 2)
    return parts[1] if len(parts) > 1 else name


def _sum_rows(rows: npt.NDArray[np.float32], n2: int, n3: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum squares over rows, for each of the weight's n2 times n3 matrices."""
    sums = np.zeros((n2 * n3, rows.shape[-1]))
    for i3, plane in enumerate(rows):
        for i2, block in enumerate(plane):
            # inputs of more dimensions than the weight has are flattened
            sums[(i3 % n3) * n2 + i2 % n2] += np.einsum("ij,ij->j", block, block)
    count = rows.shape[0] * rows.shape[1] * rows.shape[2] // (n2 * n3)
    return sums, np.array([count], np.int64)


def _sum_experts(
    rows: npt.NDArray[np.float32], ids: npt.NDArray[np.int32], experts: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum squares over the tokens that each expert was given.

    Parameters
    ----------
    rows
        Shape (1, tokens, experts used or 1, columns).
    ids
        Shape (tokens, experts used).
    """
    if rows.shape[0] != 1 or ids.shape[0] != rows.shape[1]:
        raise NativeError("the inputs of the experts have more dimensions than llama.cpp's own tool can collect")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= experts):
        raise NativeError("a token was sent to an expert that is not there")
    used = ids.shape[1]
    sums = np.zeros((experts, rows.shape[-1]))
    chosen = ids.reshape(-1)
    order = np.argsort(chosen, kind="stable")
    counts = np.bincount(chosen, minlength=experts).astype(np.int64)
    token, place = np.divmod(order, used)
    ends = np.cumsum(counts)
    for expert in np.flatnonzero(counts):
        part = slice(ends[expert] - counts[expert], ends[expert])
        block = rows[0, token[part], place[part] % rows.shape[2]]
        sums[expert] = np.einsum("ij,ij->j", block, block)
    return sums, counts
