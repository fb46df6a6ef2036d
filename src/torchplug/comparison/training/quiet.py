"""Let Lightning train without a word: no banners, no hints, no warnings of its own."""

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator

_NAMES = ("lightning.pytorch", "lightning.fabric", "lightning")
_TOLD = (
    r".*does not have many workers.*",
    r".*is smaller than the logging interval.*",
    r".*exists and is not empty.*",
    r".*num_workers.*",
    r".*in eval mode.*",
    r".*was configured without.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*lr_scheduler.step\(\).*before.*optimizer.step\(\).*",
    r".*sync_dist=True.*",
    r".*does not have a deterministic implementation.*",
    r".*Trying to infer the `batch_size`.*",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's own words; warnings of models and of torch come through."""
    loggers = [logging.getLogger(name) for name in _NAMES]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for words in _TOLD:
                warnings.filterwarnings("ignore", message=words)
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Lightning makes it an exit and ignores the next ones."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
