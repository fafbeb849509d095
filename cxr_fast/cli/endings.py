"""How a command ends: exit codes, errors in sentences, Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import IO, Any, NoReturn

import click

# docs/command-line.md has the same table.
EXIT_CODES = {
    0: "done",
    1: "refused or failed; a sentence on stderr says why",
    2: "the command line is wrong: an unknown option, a missing argument, a value out of range",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
}

# Which extra of the package brings a module, where it is not the extra torch.
_EXTRAS = {
    "lightning_fabric": "train",
    "matplotlib": "figures",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "ray": "ray",
    "tensorboardX": "train",
    "yaml": "train",
}
# errno to what is the matter, and what to do.
_MATTERS = {
    errno.ENOENT: ("there is no such file or folder", "check the name"),
    errno.EACCES: ("permission denied", "choose another place, or ask for access to this one"),
    errno.EPERM: ("the system does not permit it", "choose another place"),
    errno.EROFS: ("it lies on a disk that is read-only", "choose another place"),
    errno.EISDIR: ("it is a folder, but a file is needed", "name a file"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "check the name"),
    errno.EEXIST: ("it exists already", "choose another name"),
    errno.ENOSPC: ("the disk is full", "make room, and give the same command again"),
    errno.EDQUOT: ("your share of the disk is used up", "make room, and give the same command again"),
    errno.EFBIG: ("it would be larger than files may be here", "raise the limit (ulimit -f)"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n), or lower --threads"),
    errno.EIO: ("the disk or the network behind it failed", "try again, or look at the disk"),
}
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|bad_alloc|unable to allocate", re.I)
_SIZE = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGTP]i?B)", re.I)
# Options that memory grows with, in the order in which one would lower them.
_HUNGRY = ("--batch-size", "--input-size", "--size", "--images", "--threads")


class Refused(click.ClickException):
    """An expected error: ``Error:`` and a sentence on stderr, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Red on a terminal that wants colours."""
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        error = "Error:" if plain else click.style("Error:", fg="red", bold=True)
        click.echo(f"{error} {self.format_message()}", err=True)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, on its way up through everything that has to be closed."""

    def __init__(self, number: int) -> None:
        self.number, self.resume = number, ""

    @property
    def exit_code(self) -> int:
        """As a shell reports it."""
        return 128 + self.number

    @property
    def sentence(self) -> str:
        """What happened, and how the command goes on."""
        return "; ".join(filter(None, (f"stopped by {name_of(self.number)}", self.resume)))


class Interrupts:
    """What Ctrl-C and SIGTERM do: the first ends a command in order, the second at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._softly: Callable[[int], None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.received is not None:
            _end_at_once(number)
        self.received = number
        if self._softly is None:
            raise Stopped(number)
        self._softly(number)

    @contextlib.contextmanager
    def softly(self, stop: Callable[[int], None]) -> Iterator[None]:
        """Within the block the first signal calls ``stop``, which asks the work to end."""
        self._softly = stop
        try:
            yield
        finally:
            self._softly = None


@contextlib.contextmanager
def signals() -> Iterator[Interrupts]:
    """Handle Ctrl-C and SIGTERM while the block runs."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell that starts a command in the background makes it ignore Ctrl-C, as nohup does.
    wanted = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in wanted:
        signal.signal(number, interrupts)
    try:
        yield interrupts
    finally:
        for number in wanted:
            signal.signal(number, before[number])


def name_of(number: int) -> str:
    """What people call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _end_at_once(number: int) -> NoReturn:
    """Nothing is waited for. Files are whole or not there, so nothing is lost but work."""
    processes = sys.modules.get("multiprocessing")
    for child in processes.active_children() if processes else ():
        child.kill()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os.write(2, f"\nended at once by {name_of(number)}\n".encode())
    os._exit(128 + number)


def stdout_is_closed() -> bool:
    """Whether who read the output has gone, as ``head`` does."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def sentence_of(error: BaseException, options: Collection[str] = ()) -> str:
    """What went wrong, and what to do; ``options`` are those that the command has."""
    text = str(error).strip()
    if isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs {error.name}, which is not installed; install it with: "
            f"pip install 'cxr_fast[{_EXTRAS.get(error.name or '', 'torch')}]'"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return _no_memory(text, options)
    if isinstance(error, RuntimeError) and "start new thread" in text:
        return "the system gives this process no more threads; lower --threads"
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    if isinstance(error, ValueError | TypeError | OSError | RuntimeError) and text:
        return text
    return (
        f"something unexpected happened ({type(error).__name__}: {text or 'no message'}); this is a "
        "fault of cxr-fast: run it again with --debug, and report what that shows"
    )


def _of_the_system(error: OSError) -> str:
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    ]
    said = error.strerror or ""
    if said and said != os.strerror(error.errno or 0):
        # A sentence of our own, or of a library that knew more.
        return said if not names or names[0] in said else f"{names[0]}: {said}"
    matter, remedy = _MATTERS.get(error.errno or 0, (said or str(error), "try again"))
    where = " -> ".join(names)
    return f"{where}: {matter}; {remedy}" if where else f"{matter}; {remedy}"


def _no_memory(text: str, options: Collection[str]) -> str:
    asked = _SIZE.search(text)
    size = ""
    if asked:
        number, unit = asked.groups()
        size = (
            f": {float(number) / 2**30:,.1f} GiB" if unit.lower() == "bytes" else f": {number} {unit}"
        )
        size += " were asked for at once"
    lower = [name for name in _HUNGRY if name in options]
    remedy = f"lower {' or '.join(lower)}" if lower else "use a machine that has more"
    return f"there is not enough memory{size}; {remedy}"
