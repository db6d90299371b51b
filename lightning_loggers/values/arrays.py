"""Numbers of any library as numpy arrays that are nobody else's: one copy, or one transfer from a device."""

import contextlib
import functools
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values.buffers import BUFFERS, SMALLEST_BYTES, Memory, array_over
from lightning_loggers.values.device import host_copy
from lightning_loggers.values.snapshots import origins

Array = np.ndarray[Any, Any]
Copy = Memory | bytearray | Array

_QUICK_BYTES = 4 * 2**20
"""What is copied in less time than waiting for the interpreter may take."""

_NUMPY_FLOATS = ("torch.float16", "torch.float32", "torch.float64")


class OwnArray(np.ndarray):
    """An array that is nobody else's: no snapshot of it copies it again.

    Attributes:
        of: The class of the value that it is a copy of.
    """

    of: type = np.ndarray


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor or array, not looking at its values; ``None`` for what has none, such as a list."""
    shape = getattr(value, "shape", None)
    if type(shape) is tuple:  # numpy's
        return shape
    try:
        return None if shape is None else tuple(int(size) for size in shape)
    except TypeError:
        return None


def view(value: Any) -> tuple[Array, bool]:
    """The values of a tensor, array, image or list as a numpy array, copied only if that cannot be avoided.

    Args:
        value: A torch tensor on any device and of any dtype, a numpy or jax array, anything with ``__array__``, a
            number, or a list of these.

    Returns:
        The array, and whether its memory is already nobody else's.

    Raises:
        UnsuitableValueError: If it is none of these.
    """
    if type(value) is np.ndarray:
        array, own = value, False
    elif type(value) is OwnArray:
        array, own = value.view(np.ndarray), True
    elif "torch" in origins(value) and hasattr(value, "detach"):
        array, own = _of_tensor(value)
    else:
        array, own = _of_others(value)
    if array.dtype.kind not in "biuf":
        if array.dtype.kind == "V":  # bfloat16 and other small floats of jax, which numpy does not know
            with contextlib.suppress(TypeError, ValueError):
                return array.astype(np.float32), True
        raise UnsuitableValueError(f"a {type(value).__name__} of {array.dtype} holds no real numbers")
    return array, own


def type_of(value: Any) -> str:
    """The name of a tensor's or array's type, such as ``float32``; empty for what has none, such as a list."""
    return name_of(getattr(value, "dtype", None))


@functools.lru_cache(maxsize=256)
def name_of(dtype: Any) -> str:
    """The name of a type of elements; empty for ``None``."""
    return "" if dtype is None else str(dtype).rpartition(".")[2]


def snapshot(value: Any) -> Array:
    """The values as they are now: one copy, none where a transfer or conversion has made one already.

    Raises:
        UnsuitableValueError: As :func:`view`.

    >>> import torch
    >>> tensor = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    >>> snapshot(tensor)
    array([1., 1.], dtype=float32)
    """
    array, own = view(value)
    if own:
        return array
    return _as_array(copied(array), array.shape, array.dtype, array.strides)


def copied(array: Array) -> Copy:
    """A copy of an array of numbers, for :func:`own_array` to make an array of; mostly it is only its bytes."""
    size_bytes = array.nbytes
    if 0 < size_bytes <= _QUICK_BYTES and array.ndim:
        block = array if array.flags.c_contiguous else _in_order_of_memory(array)
        if block.flags.c_contiguous:
            # numpy gives up the interpreter to copy, and has to wait for it again while another thread encodes.
            if size_bytes < SMALLEST_BYTES:
                return bytearray(block)
            memory = BUFFERS.take(size_bytes)
            memory[0][:size_bytes] = block.data.cast("B")
            return memory
    return array.copy("K")


def _in_order_of_memory(array: Array) -> Array:
    """The same memory with its axes in another order: of an image (H, W, C) that was (C, H, W) the latter."""
    strides = array.strides
    return array.transpose(sorted(range(array.ndim), key=lambda axis: -strides[axis]))


def _as_array(copy: Copy, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None) -> Array:
    if isinstance(copy, tuple):
        return array_over(copy, shape, dtype, strides)
    return np.ndarray(shape, dtype, copy, strides=strides) if isinstance(copy, bytearray) else copy


def own_array(
    copy: Copy, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None, of: type
) -> OwnArray:
    """The array that was :func:`copied`.

    Args:
        copy: What that returned.
        shape: The array's shape.
        dtype: Its type.
        strides: Its strides, bytes; ``None`` if it is C-contiguous.
        of: The class of the value that was logged.
    """
    own = _as_array(copy, shape, dtype, strides).view(OwnArray)
    own.of = of
    return own


def class_of(value: Any) -> type:
    """The class of a value, or of that which it is a copy of."""
    return value.of if type(value) is OwnArray else type(value)


def memory_of(tensor: Any) -> Array | None:
    """The memory of a torch tensor as an array; ``None`` if numpy cannot have it: on a device, bfloat16, sparse ..."""
    try:
        return tensor.numpy()  # type: ignore[no-any-return]
    except RuntimeError:  # it requires gradients, which to ask takes as long
        pass
    except TypeError:
        return None
    try:
        return tensor.detach().numpy()  # type: ignore[no-any-return]
    except (TypeError, RuntimeError):
        return None


def _of_tensor(value: Any) -> tuple[Array, bool]:
    tensor, own = value.detach(), False
    if tensor.layout is not _strided(tensor):
        tensor, own = tensor.to_dense(), True
    if tensor.is_quantized:
        tensor, own = tensor.dequantize(), True
    if tensor.is_floating_point() and str(tensor.dtype) not in _NUMPY_FLOATS:  # bfloat16, float8
        tensor, own = tensor.float(), True
    if tensor.device.type != "cpu":
        tensor, own = host_copy(tensor, of=value), True
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor.numpy(), own


def _strided(tensor: Any) -> Any:
    import torch  # it is loaded already: the value is its own

    return torch.strided


def _of_others(value: Any) -> tuple[Array, bool]:
    if isinstance(value, list | tuple) and any("torch" in origins(item) for item in value[:1]):
        return np.stack([view(item)[0] for item in value]), True
    try:
        array = np.asarray(value)
    except Exception as error:  # noqa: BLE001 - a foreign object's own conversion
        raise UnsuitableValueError(f"a {type(value).__name__} is no array ({error})") from None
    # jax's arrays cannot be changed; whatever else lends its memory (a subclass of numpy's, a memoryview) is copied.
    return array, "jax" in origins(value) or "jaxlib" in origins(value) or isinstance(value, list | tuple)
