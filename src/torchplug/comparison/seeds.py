"""Random streams that depend on what they are for, and on nothing that ran before."""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(*purpose: str | int) -> int:
    """Return the seed of one random stream: the same words always give the same number.

    Every stream of a trial is keyed by its seed and its purpose (initial weights, order,
    augmentation), so what one of them draws never moves another: variants of one seed see the
    same images in the same order and start from the same base.

    >>> derive_seed("base", 0) == derive_seed("base", 0) != derive_seed("order", 0)
    True
    """
    text = "\0".join(map(str, ("torchplug", *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(*purpose: str | int) -> torch.Generator:
    """Return a generator of its own for one purpose."""
    return torch.Generator().manual_seed(derive_seed(*purpose))


@contextlib.contextmanager
def deterministic(*purpose: str | int, device: str = "cpu") -> Iterator[None]:
    """Make what runs inside repeatable, and restore the global settings afterwards.

    One thread: the number of threads changes the order of sums, and with it the last digits. On
    another device than ``cpu`` a kernel that has no repeatable form only warns: pairs are then
    looser, but not wrong.
    """
    threads, was_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    states = random.getstate(), np.random.get_state()  # a user's model may draw from these
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    with torch.random.fork_rng():
        try:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True, warn_only=not device.startswith("cpu"))
            seed = derive_seed(*purpose)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            torch.use_deterministic_algorithms(was_strict, warn_only=only_warned)
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_num_threads(threads)
