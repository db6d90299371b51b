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
from lightning_loggers.loggers import encoding
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


def ready_for(logger: CSVLogger, array: "np.ndarray[Any, Any]") -> None:
    """Have memory made ready for arrays of that size, by the encoding of one."""
    logger.log(np.zeros(array.nbytes, np.uint8), "first", kind="histogram", step=0)
    wait_until(lambda: bool(BUFFERS.ready_for.get(array.nbytes)), 60, "memory made ready")


OF_ONE_SIZE = {
    "as it is": lambda image: image,
    "a view": lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    "a part": lambda image: np.concatenate([image, image], axis=1)[:, : image.shape[1]],
    "reversed": lambda image: np.ascontiguousarray(image[::-1])[::-1],
    "a tensor": torch.from_numpy,
    "a tensor that requires gradients": lambda image: (torch.from_numpy(image) / 255.0).requires_grad_(),
    "floats": lambda image: image / np.float32(255),
    "of the other byte order": lambda image: (image / 255).astype(">f4"),
}


@pytest.mark.parametrize("way", OF_ONE_SIZE)
def test_memory_that_is_ready_takes_any_array(logger: CSVLogger, way: str) -> None:
    """Whatever order its memory is in: what is recorded is what it was, though it is overwritten at once."""
    for step in range(1, 4):
        image = random_image(step)
        value = OF_ONE_SIZE[way](image)
        if step == 1:
            ready_for(logger, value if isinstance(value, np.ndarray) else value.detach().numpy())
        logger.log(value, "image", kind="image", step=step)
        (value if isinstance(value, np.ndarray) else value.detach().numpy())[:] = 0
    logger.close()
    assert logger.stats.dropped == 0
    folder = Path(logger.log_dir)
    found = {}
    for record in journal.read(folder):
        if record.kind == "image":
            (blob,) = record.blobs or []
            found[record.step] = np.asarray(Image.open(folder / "journal" / "blobs" / blob.id / blob.name))
    assert list(found) == [1, 2, 3]
    assert all(np.array_equal(pixels, random_image(int(step or 0))) for step, pixels in found.items())


@pytest.mark.parametrize("dtype", ["O", "c8", "M8[s]", "S8", "V8", "U2"])
def test_memory_that_is_ready_takes_no_array_of_anything_else(logger: CSVLogger, dtype: str) -> None:
    """Least of all references to objects: it is told, and the memory is still ready."""
    other = np.zeros(SHAPE, dtype)
    ready_for(logger, other)
    before = len(BUFFERS.ready_for[other.nbytes])
    logger.log(other, "other", kind="image", step=1)
    logger.close()
    gc.collect()
    assert len(BUFFERS.ready_for[other.nbytes]) >= before
    assert logger.stats.dropped_reasons == {"unsuitable value": 1}


def test_a_burst_never_waits_in_more_memory_than_it_may(logger: CSVLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is made ready again while images wait, but not for ever; what does not fit the caller encodes."""
    most = READY_BYTES + 8 * 2**20
    monkeypatch.setattr(encoding, "MAX_WAITING_BYTES", most)
    pixels = random_image(0, (1024, 1024))
    ready_for(logger, pixels)
    held = []
    for step in range(1, 121):
        pixels[0, :2] = divmod(step, 250)
        logger.log(pixels, "image", kind="image", step=step)
        jobs = list(encoding._encoder._order)
        held.append(sum(job.size_bytes for job in jobs if not job.ready))
    assert max(held) <= most
    assert max(held) > READY_BYTES // 2
    logger.close()
    steps = [record.step for record in journal.read(Path(logger.log_dir)) if record.id == "image"]
    assert steps == list(range(1, 121))


def test_the_encoding_thread_is_woken_once_it_no_longer_looks(
    logger: CSVLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As hours after the last image: nobody has to wait for the run's end."""
    monkeypatch.setattr(encoding, "_LINGER_S", 0.01)
    pixels = random_image(0)
    ready_for(logger, pixels)
    for step in range(3):
        wait_until(lambda: encoding._encoder._asleep, 60, "the thread asleep")
        logger.log(pixels, "image", kind="image", step=step)
        wait_until(lambda: encoding.pending(logger) == 0, 60, "an image encoded by the thread")
    logger.close()
