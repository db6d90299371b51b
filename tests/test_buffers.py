"""Memory that copies are made into: used again when nobody looks at it any more, and not before."""

import gc
import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import wait_until
from PIL import Image

from lightning_loggers import CSVLogger, journal
from lightning_loggers.values.arrays import copied, own_array, snapshot
from lightning_loggers.values.buffers import BUFFERS, READY_BYTES, Buffers

SHAPE = (256, 256, 3)


@pytest.fixture(autouse=True)
def _empty() -> None:
    gc.collect()
    BUFFERS.clear()


def random_image(seed: int, shape: tuple[int, ...] = SHAPE) -> "np.ndarray[Any, Any]":
    """One that no other seed has."""
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


@pytest.mark.parametrize("size_bytes", [2**16, 2**16 + 1, 786_432, 999_999, 4 * 2**20])
def test_memory_is_large_enough_and_not_much_larger(size_bytes: int) -> None:
    """At most a quarter of it is for nothing."""
    content, _address = Buffers().take(size_bytes)
    assert size_bytes <= len(content) <= 1.25 * size_bytes


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float16", "float32", ">f8"])
def test_an_array_over_it_is_what_was_copied(dtype: str) -> None:
    """Of any type, and in any order of bytes."""
    array = (np.arange(2**17) % 200).reshape(4, 8, -1).astype(dtype)
    copy = snapshot(array)
    assert copy.dtype == array.dtype
    assert np.array_equal(copy, array)
    array[:] = 0
    assert copy.any()


@pytest.mark.parametrize("size", [4, 300])
@pytest.mark.parametrize("view", ["transposed", "moved", "part", "flipped", "broadcast", "empty", "one"])
def test_a_copy_of_any_view_is_what_it_was(view: str, size: int) -> None:
    """Dense in another order of its axes, or not dense at all; each keeps its shape and its values."""
    whole = np.random.default_rng(0).random((3, size, size + 1), np.float32)
    array = {
        "transposed": whole.T, "moved": np.moveaxis(whole, 0, -1), "part": whole[:, 1:, ::2], "flipped": whole[:, ::-1],
        "broadcast": np.broadcast_to(whole[0], (2, size, size + 1)), "empty": whole[:0].T, "one": whole[:1, :, :1],
    }[view]  # fmt: skip
    if size == 300 and view in {"transposed", "moved"}:
        assert isinstance(copied(array), tuple), "copied as its memory lies, without giving up the interpreter"
    copy = snapshot(array)
    expected = array.copy()
    whole[:] = 0
    assert (copy.shape, copy.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(copy, expected)


def test_memory_is_used_again_when_the_last_array_over_it_is_gone() -> None:
    """A view, a view of a view and a tensor hold it as the array does."""
    pixels = random_image(0)
    own = own_array(copied(pixels), pixels.shape, pixels.dtype, pixels.strides, torch.Tensor)
    address = own.ctypes.data
    part = own.view(np.ndarray)[3:][:, 2:]
    tensor = torch.from_numpy(part)
    del own
    assert BUFFERS.take(pixels.nbytes)[1] != address
    del part
    assert np.array_equal(tensor.numpy(), pixels[3:, 2:])
    assert BUFFERS.take(pixels.nbytes)[1] != address
    del tensor
    assert BUFFERS.take(pixels.nbytes)[1] == address


def test_what_is_ready_is_bounded_and_shared_among_the_sizes() -> None:
    """Also when sizes come that were not asked for before, and all that was taken comes back."""
    pool = Buffers()
    pool.make_ready()
    assert pool.ready_bytes == 0  # nobody has asked yet
    pool.take(2**20)
    pool.make_ready()
    assert READY_BYTES - 2**20 <= pool.ready_bytes <= READY_BYTES
    taken = [pool.take(2**20) for _ in range(100)]
    for size_bytes in (2**16, 300_000, 4 * 2**20):
        pool.take(size_bytes)
        pool.make_ready()
        assert pool.ready_bytes <= READY_BYTES
    for memory in taken:
        pool.give_back(memory)
    assert READY_BYTES // 2 <= pool.ready_bytes <= READY_BYTES
    pool.clear()
    assert pool.ready_bytes == 0


def test_a_forked_child_holds_none_of_its_parents() -> None:
    """Writing to a page of the parent's would mean to copy it first."""
    BUFFERS.take(2**20)
    BUFFERS.make_ready()
    assert BUFFERS.ready_bytes
    child = os.fork()
    if not child:
        os._exit(BUFFERS.ready_bytes != 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[CSVLogger]:
    """It delivers nothing, so that images are all that its process is at."""
    logger = CSVLogger(tmp_path, delivery="offline")
    yield logger
    logger.close()


def test_a_burst_of_images_waits_for_no_page(logger: CSVLogger) -> None:
    """Log calls write to memory that is there, even if none of it has been encoded yet."""
    pixels = random_image(0, (512, 512, 3))
    logger.log(pixels, "first", kind="image", step=0)
    wait_until(lambda: BUFFERS.ready_bytes == READY_BYTES // pixels.nbytes * pixels.nbytes, 60, "memory made ready")
    number = READY_BYTES // pixels.nbytes
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for step in range(number):
        logger.log(pixels, "burst", kind="image", step=step)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    assert faults < number * pixels.nbytes / resource.getpagesize() / 4


@pytest.mark.parametrize("way", ["alone", "with a caption", "in a list", "as a tensor"])
def test_images_in_used_memory_are_their_own(logger: CSVLogger, way: str) -> None:
    """More images than there is memory ready; each array is overwritten as soon as it has been logged."""
    number = READY_BYTES // random_image(0).nbytes + 20
    for step in range(number):
        pixels = random_image(step)
        if way == "in a list":
            logger.log_image("image", [pixels, pixels], step=step, caption=["a", "b"])
        elif way == "as a tensor":
            logger.log_image("image", torch.from_numpy(pixels), step=step)
        else:
            logger.log_image("image", pixels, step=step, **({"caption": "a"} if way == "with a caption" else {}))
        pixels[:] = 7
        if step == number // 2:
            wait_until(lambda: bool(BUFFERS.ready_bytes), 60, "memory made ready")
    logger.close()
    folder = Path(logger.log_dir)
    found = 0
    for record in journal.read(folder):
        for blob in record.blobs or []:
            content = (folder / "journal" / "blobs" / blob.id / blob.name).read_bytes()
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), random_image(int(record.step or 0)))
            found += 1
    assert found == number * (2 if way == "in a list" else 1)


def test_memory_of_what_cannot_be_encoded_comes_back(logger: CSVLogger) -> None:
    """No error that was told of it holds it."""
    wrong = random_image(0, (5, 256, 256, 5))
    logger.log(wrong, "wrong", kind="image", step=0)
    size_bytes = len(Buffers().take(wrong.nbytes)[0])
    ready = READY_BYTES // size_bytes * size_bytes
    wait_until(lambda: BUFFERS.ready_bytes == ready, 60, "memory made ready")
    for step in range(1, 4):
        logger.log(wrong, "wrong", kind="image", step=step)
    logger.close()
    gc.collect()
    assert BUFFERS.ready_bytes == ready
