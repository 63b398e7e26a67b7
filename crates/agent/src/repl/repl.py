"""The sandbox's Python REPL: runs the cells that the agent sends, in one namespace that stays.

Commands and replies travel over two pipes, fresh seeds over a third; output is whatever reaches the
file descriptors 1 and 2, which the agent reads. The runner has no threads (os.fork() stays safe in
user code) and leaves none of its names in the user's `__main__`.
"""

import __future__
import ast
import fcntl
import linecache
import os
import select
import signal
import struct
import sys
import traceback
import types
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

RUNNER_FILE = "<podflare>"

# Frames. A command is a kind, a number and a length, then that many bytes; a seed has a number too. The
# bytes of a call are two lengths, what surrounds it (its directory, or nothing, and its variables, with a
# zero between two), its standard input, and its code. A reply is a kind, the number of what it answers, and an exit code; it may come twice.
COMMAND = struct.Struct("<BII")
SEED = struct.Struct("<I64s")
CALL = struct.Struct("<II")
REPLY = struct.Struct("<BIi")
EXEC, RENEW = 1, 2
READY, DONE, RENEWED = 1, 2, 3

# Exit codes where the code has none of its own.
EXIT_CODE_EXCEPTION = 1
EXIT_CODE_INTERRUPTED = 130

# Below this number descriptors are left to the user's code.
DESCRIPTOR_MIN = 200

# The most bytes of one read of a command: what a pipe holds.
READ_LEN_MAX = 64 * 1024

# Sources kept for tracebacks and inspect.getsource: one cell's, and all together, in characters, and
# their number. Cells that carry a file as base64 are over the first limit.
CELL_KEPT_LEN_MAX = 256 * 1024
CELLS_KEPT_LEN_MAX = 8 * 1024 * 1024
CELLS_KEPT_MAX = 10_000

# inspect.CO_COROUTINE: the code has a top-level await, and evaluating it gives a coroutine.
CO_COROUTINE = 0x80

FUTURE_FLAGS = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})


def dedent(source: str) -> str:
    """The source without the indentation of its first line of code.

    Only lines that have it lose it, so text at the margin inside a string literal stays as it is.
    """
    lines = source.split("\n")
    code = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    margin = code[: len(code) - len(code.lstrip(" \t"))]
    return "\n".join(line.removeprefix(margin) for line in lines)


def open_stream(descriptor: int) -> Any:
    """A line-buffered text stream; a lone surrogate is shown as an escape, never an error."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def revive_streams(outputs: dict[int, int]) -> None:
    """Opens sys.stdout and sys.stderr anew where an earlier cell has closed them.

    A descriptor that is closed comes back from its duplicate, or the next open() would get its
    number and all that is printed. One that is another file now was made so on purpose.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        with suppress(BaseException):
            try:
                os.fstat(descriptor)
            except OSError:
                os.dup2(outputs[descriptor], descriptor)
            stream = getattr(sys, name, None)
            if stream is None or getattr(stream, "closed", False):
                setattr(sys, name, open_stream(descriptor))


def flush_streams() -> None:
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        # Closed, or the user's own and broken: nothing of it can be saved.
        with suppress(BaseException):
            getattr(sys, name).flush()


def show_exception(error: BaseException) -> None:
    """Prints the traceback from the first frame of a cell on; the runner's own frames are left out."""
    try:
        frames = error.__traceback__
        while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell "):
            frames = frames.tb_next
        error.__traceback__ = frames
        if isinstance(error, SyntaxError) and error.text is None and error.filename and error.lineno:
            error.text = linecache.getline(error.filename, error.lineno)
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(type(error), error, frames)
        else:
            # The built-in hook of Python 3.11 and 3.12 does not look sources up in linecache.
            traceback.print_exception(error)
    except BaseException:
        with suppress(OSError):
            os.write(2, f"{type(error).__name__}: its traceback could not be printed\n".encode())


def exit_code(error: SystemExit) -> int:
    # Any of this may be the user's own, and raise.
    with suppress(BaseException):
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return int.__and__(code, 0xFF)
        print(code, file=sys.stderr)
    return EXIT_CODE_EXCEPTION


def reseed(seed: bytes) -> None:
    """Gives every generator that lives in this process a state of its own.

    The hash seed cannot change in a running process, and generators that the user's code has made
    itself (random.Random(), numpy.random.default_rng()) are its own affair. `secrets`, `uuid4` and
    os.urandom ask the kernel.
    """
    for name, renew in (
        ("random", lambda module: module.seed(seed[:32])),
        ("numpy.random", lambda module: module.seed(struct.unpack("<8I", seed[32:]))),
        ("ssl", lambda module: module.RAND_add(seed, 32.0)),
        # Made again, and then seeded by the kernel, at its next use.
        ("tempfile", lambda module: setattr(module, "_name_sequence", None)),
    ):
        # Fails on a user's module of that name, or one half imported: nothing there to renew.
        with suppress(Exception):
            if name in sys.modules:
                renew(sys.modules[name])


def set_variable(name: bytes, value: bytes | None) -> None:
    if value is None:
        os.environb.pop(name, None)
    else:
        os.environb[name] = value


def set_interrupt_handler(handler: Any) -> Any:
    """Sets what SIGINT does and returns what it did; a handler that C code has set cannot be kept."""
    return signal.signal(signal.SIGINT, handler) or signal.default_int_handler


def ignore_interrupt(*_: Any) -> None:
    """Between cells. A function, not SIG_IGN, which every process started meanwhile would inherit."""


class Runner:
    def __init__(self, commands: int, replies: int, seeds: int) -> None:
        # Read without a buffer, which could hold a command that the poll does not see.
        self.commands = self.own(commands)
        self.replies = self.own(replies)
        self.seeds = self.own(seeds)
        os.set_blocking(self.seeds, False)
        self.pipes = select.poll()
        self.pipes.register(self.commands, select.POLLIN)
        for descriptor in (self.replies, self.seeds):
            self.pipes.register(descriptor, 0)
        # What has arrived of the next command, the last seed, and the reply that is due.
        self.header: list[bytes] = []
        self.body: list[bytes] = []
        self.seed: deque[bytes] = deque(maxlen=1)
        self.seed_applied = 0
        self.due: tuple[int, int, int] | None = (READY, 0, 0)
        self.outputs = {descriptor: self.duplicate(descriptor) for descriptor in (1, 2)}
        self.pid = os.getpid()
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = sys.modules["builtins"]
        self.interrupt_handler: Any = signal.default_int_handler
        self.compile_flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.event_loop: Any = None
        self.cells = 0
        # How to undo what was done for a call, the last of it first. Each step may be done twice.
        self.undo: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.kept: deque[tuple[str, int]] = deque()
        self.kept_len = 0

    @staticmethod
    def duplicate(descriptor: int) -> int:
        """Out of the way of user code; processes it starts do not inherit it."""
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, DESCRIPTOR_MIN)

    def own(self, descriptor: int) -> int:
        moved = self.duplicate(descriptor)
        os.close(descriptor)
        return moved

    def take_over(self, renewal_signal: int) -> None:
        """Makes this process look like a fresh interactive Python to the code that it will run."""
        os.setsid()
        sys.modules["__main__"] = self.main
        sys.argv = [""]
        # Last: what the runner itself imports must not be a file in the user's directory.
        sys.path.insert(0, "")
        sys.stdout = sys.__stdout__ = open_stream(1)
        sys.stderr = sys.__stderr__ = open_stream(2)
        set_interrupt_handler(ignore_interrupt)
        # System calls that it meets fail with EINTR, as signal.signal() sets it up: only so does a
        # main thread come back that waits for another one, a process or input.
        signal.signal(renewal_signal, self.renew_at_once)

    def serve(self) -> None:
        """Until the agent closes the pipe. Threads and atexit handlers of the user do not outlive it.

        The user's signal handlers run between two cells too, and may raise wherever Python calls
        something. So a turn that is broken off leaves all in order for the next one.
        """
        raised: deque[BaseException] = deque()
        while True:
            # Two layers: when one handler raises, the signal of another may wait already.
            try:
                try:
                    while raised:
                        self.wait(0)
                        show_exception(raised.popleft())
                        flush_streams()
                    self.take_turn()
                except BaseException as error:
                    raised.append(error)
            except BaseException as error:
                raised.append(error)

    def take_turn(self) -> None:
        if os.getpid() != self.pid:
            os._exit(self.due[2] if self.due else 0)  # A cell's forked child: the loop is its parent's.
        if self.due:
            # Perhaps a second time, which its number tells the agent.
            os.write(self.replies, REPLY.pack(*self.due))
            self.due = None
        kind, number, length = COMMAND.unpack(self.receive(self.header, COMMAND.size))
        source = self.receive(self.body, length)
        if kind == RENEW:
            self.renew()
            self.header, self.body = [], []
        elif kind == EXEC:
            # What a handler raises before the code begins or after its end is how the cell ends.
            self.due, self.header, self.body = (DONE, number, EXIT_CODE_EXCEPTION), [], []
            code = self.run_cell(source)
            flush_streams()
            self.due = (DONE, number, code)

    def receive(self, pieces: list[bytes], length: int) -> bytes:
        while (missing := length - sum(map(len, pieces))) > 0:
            self.wait()
            # No handler runs within one call of C, so what is read is kept.
            pieces.extend(map(os.read, (self.commands,), (min(missing, READ_LEN_MAX),)))
        return b"".join(pieces)

    def wait(self, timeout_ms: int | None = None) -> None:
        """Until a command comes. Without the agent, or a pipe that the user's code has closed, all ends."""
        for _, event in self.pipes.poll(timeout_ms):
            if not event & select.POLLIN:
                flush_streams()
                os._exit(0)

    def run_cell(self, call: bytes) -> int:
        # Only if a signal's handler has broken it off before.
        self.restore()
        revive_streams(self.outputs)
        surroundings_len, stdin_len = CALL.unpack_from(call)
        stdin_at = CALL.size + surroundings_len
        source_at = stdin_at + stdin_len
        # Each cell shows a warning of its own; the interpreter counts lines, which all begin at 1.
        self.main.__dict__.pop("__warningregistry__", None)
        try:
            try:
                self.surround(call[CALL.size : stdin_at], call[stdin_at:source_at])
                set_interrupt_handler(self.interrupt_handler)
                self.execute(str(memoryview(call)[source_at:], "utf-8"))
            finally:
                self.interrupt_handler = set_interrupt_handler(ignore_interrupt)
                self.restore()
        except SystemExit as error:
            return exit_code(error)
        except BaseException as error:
            set_interrupt_handler(ignore_interrupt)
            show_exception(error)
            return EXIT_CODE_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_CODE_EXCEPTION
        return 0

    def surround(self, surroundings: bytes, stdin: bytes) -> None:
        """Gives a call its directory, its variables and its input, and notes how to take them back."""
        cwd, *variables = surroundings.split(b"\0")
        if cwd:
            former = self.own(os.open(".", os.O_PATH | os.O_DIRECTORY))
            self.undo.append((os.close, (former,)))
            self.undo.append((os.chdir, (former,)))
            os.chdir(cwd)
        for variable in variables:
            name, _, value = variable.partition(b"=")
            self.undo.append((set_variable, (name, os.environb.get(name))))
            os.environb[name] = value
        if stdin:
            try:
                former = self.duplicate(0)
                self.undo += [(os.close, (former,)), (os.dup2, (former, 0))]
            except OSError:  # An earlier call has closed it.
                self.undo.append((os.close, (0,)))
            self.undo.append((setattr, (sys, "stdin", getattr(sys, "stdin", None))))
            content = self.own(os.memfd_create("stdin"))
            with open(content, "wb", closefd=False) as file:
                file.write(stdin)
            os.lseek(content, 0, os.SEEK_SET)
            os.dup2(content, 0)
            os.close(content)
            sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)

    def restore(self) -> None:
        """Whatever the call has done to its directory, its variables and its input: they are as before it."""
        while self.undo:
            step, arguments = self.undo[-1]
            with suppress(OSError):
                step(*arguments)
            self.undo.pop()

    def execute(self, source: str) -> None:
        self.cells += 1
        filename = f"<cell {self.cells}>"
        source, tree = self.parse(source, filename)
        self.keep_source(source, filename)
        # "single" hands the value of an expression to sys.displayhook, as the interactive Python does.
        last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        codes = []
        for part, mode in ((tree, "exec"), (ast.Interactive(last), "single")):
            if part.body:
                codes.append(compile(part, filename, mode, self.compile_flags, dont_inherit=True))
                self.compile_flags |= codes[-1].co_flags & FUTURE_FLAGS
        if any(code.co_flags & CO_COROUTINE for code in codes):
            self.run_awaiting(codes)
        else:
            for code in codes:
                eval(code, self.main.__dict__)

    def parse(self, source: str, filename: str) -> tuple[str, ast.Module]:
        flags = self.compile_flags | ast.PyCF_ONLY_AST
        try:
            return source, compile(source, filename, "exec", flags, dont_inherit=True)
        except IndentationError:
            dedented = dedent(source)
            if dedented == source:
                raise
        return dedented, compile(dedented, filename, "exec", flags, dont_inherit=True)

    def keep_source(self, source: str, filename: str) -> None:
        if len(source) > CELL_KEPT_LEN_MAX:
            return
        lines = [line + "\n" for line in source.split("\n")]
        # No modification time: linecache then never looks for a file of that name.
        linecache.cache[filename] = (len(source), None, lines, filename)
        self.kept.append((filename, len(source)))
        self.kept_len += len(source)
        while self.kept_len > CELLS_KEPT_LEN_MAX or len(self.kept) > CELLS_KEPT_MAX:
            oldest, length = self.kept.popleft()
            linecache.cache.pop(oldest, None)
            self.kept_len -= length

    def run_awaiting(self, codes: list[types.CodeType]) -> None:
        """Top-level await: one event loop for all cells; its tasks go on while a cell awaits."""
        if self.event_loop is None or self.event_loop.get_loop().is_closed():
            import asyncio

            self.event_loop = asyncio.Runner()

        async def run() -> None:
            for code in codes:
                coroutine = eval(code, self.main.__dict__)
                if coroutine is not None:
                    await coroutine

        self.event_loop.run(run())

    def renew(self) -> None:
        """Applies the last seed that has come, once, and acknowledges it with all before."""
        if os.getpid() != self.pid:
            return
        with suppress(BlockingIOError):
            while not self.seed or self.seed[0]:
                # As with commands: what is read is kept.
                self.seed.extend(map(os.read, (self.seeds,), (SEED.size,)))
        if not self.seed:
            return  # The signal came from somebody else.
        number, seed = SEED.unpack(self.seed[0])
        if number != self.seed_applied:
            reseed(seed)
            self.seed_applied = number
        os.write(self.replies, REPLY.pack(RENEWED, number, 0))

    def renew_at_once(self, *_: Any) -> None:
        """Between two instructions of the user's code; an interrupt waits, so that no seed is lost."""
        interrupted = []
        handler = set_interrupt_handler(lambda *_: interrupted.append(True))
        try:
            self.renew()
        finally:
            set_interrupt_handler(handler)
        if interrupted:
            signal.raise_signal(signal.SIGINT)


def main() -> None:
    commands, replies, seeds, renewal_signal = map(int, sys.argv[2:])
    runner = Runner(commands, replies, seeds)
    runner.take_over(renewal_signal)
    runner.serve()


if __name__ == "__main__":
    main()
