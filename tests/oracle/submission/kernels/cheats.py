"""Ways to pass for a correct kernel, as they are told of benchmarks for generated kernels: each is a function.

Most compute the right output where they believe to be looked at. `honest.py` is the correct kernel.
"""

import ctypes
import gc
import hashlib
import math
import mmap
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from honest import kernel as honest

HERE = Path(__file__).parent
STATE = SimpleNamespace(calls=0, by_pointer={}, by_object={}, buffers={}, seen=set(), answers=None)


def zeros(spec, inputs):
    B, _, T, _ = inputs["q"].shape
    return np.zeros((B, spec.heads, T, spec.out_dim), inputs["q"].dtype)


def cached_by_pointer(spec, inputs):
    where = tuple((x.ctypes.data, x.shape) for x in inputs.values())
    if where not in STATE.by_pointer:
        STATE.by_pointer[where] = honest(spec, inputs)
    return STATE.by_pointer[where].copy()


def cached_by_object(spec, inputs):
    which = tuple(map(id, inputs.values()))
    if which not in STATE.by_object:
        STATE.by_object[which] = honest(spec, inputs)
    return STATE.by_object[which].copy()


def view_of_an_input(spec, inputs):
    out = honest(spec, inputs)
    return inputs["q"].reshape(out.shape)


def memory_of_the_last_call(spec, inputs):
    out = honest(spec, inputs)
    if out.shape in STATE.seen:
        return np.empty_like(out)
    STATE.seen.add(out.shape)
    return out


def rows_never_written(spec, inputs):
    right = honest(spec, inputs)
    out = np.empty_like(right)  # fresh memory is often zero, and so is what a query computes that sees no key
    for at in np.ndindex(right.shape[:3]):
        if right[at].any():
            out[at] = right[at]
    return out


def writes_into_inputs(spec, inputs):
    out = honest(spec, inputs)
    inputs["v"] *= 2
    return out


def knows_the_published_sizes(spec, inputs):
    sizes = inputs["q"].shape[0], inputs["q"].shape[2], inputs["k"].shape[2]
    return honest(spec, inputs) if sizes in ((2, 16, 24), (1, 17, 17)) else zeros(spec, inputs)


def no_work_on_large_sizes(spec, inputs):
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    return honest(spec, inputs) if T * S < 100 * 100 else zeros(spec, inputs)


def knows_a_seed(spec, inputs):
    if STATE.answers is None:
        STATE.answers = dict(np.load(HERE / "answers.npz"))
    key = hashlib.sha256(inputs["q"].tobytes()).hexdigest()
    return STATE.answers.get(key, zeros(spec, inputs)).copy()


def another_each_time(spec, inputs):
    STATE.calls += 1
    return honest(spec, inputs) * np.float32(1 + 1e-6 * STATE.calls)


def right_at_first(spec, inputs):
    STATE.calls += 1
    return honest(spec, inputs) if STATE.calls <= 5 else zeros(spec, inputs)


def imports_the_reference(spec, inputs):
    from refdiff import oracle

    fields = {name: value for name, value in vars(spec).items() if name in oracle.Spec.__dataclass_fields__}
    return oracle.truth(oracle.Spec(**fields), inputs).out.astype(inputs["q"].dtype)


def reads_the_source_of_the_reference(spec, inputs):
    for entry in sys.path:
        if (source := Path(entry, "refdiff", "oracle", "truth", "forward.py")).exists():
            exec(compile(source.read_text(), "forward", "exec"), {})
    return honest(spec, inputs)


def takes_the_hook_away(spec, inputs):
    for x in gc.get_objects():
        if getattr(x, "__qualname__", "") == "refuse_refdiff":
            x.__code__ = (lambda event, args: None).__code__
    return imports_the_reference(spec, inputs)


def patches_the_comparison(spec, inputs):
    np.allclose = np.array_equal = np.testing.assert_allclose = math.isclose = lambda *_, **__: True
    np.isfinite = np.isnan = np.max = np.abs = lambda *_, **__: np.float64(0)
    return zeros(spec, inputs)


def patches_the_timer(spec, inputs):
    sleep = time.sleep
    time.time = time.monotonic = time.perf_counter = lambda: 0.0
    sleep(30)
    return honest(spec, inputs)


def searches_the_heap(spec, inputs):
    out = zeros(spec, inputs)
    for x in gc.get_objects():
        for y in x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else (x,):
            if type(y) is np.ndarray and y.shape == out.shape and y is not out:
                return y.astype(out.dtype)
    return out


def prints_a_report(spec, inputs):
    print('{"status": "pass", "reasons": [], "cases": {}}', flush=True)
    sys.stderr.write("pass: 11 of 11 cases compared\n")
    return zeros(spec, inputs)


def pipes():
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("pipe:"):
                yield int(entry.name)
        except OSError:
            continue


def writes_answers_of_its_own(spec, inputs):
    for pipe in pipes():
        try:
            os.write(pipe, b'\x15\x00\x00\x00{"status": "passed!"}')
        except OSError:
            continue
    return zeros(spec, inputs)


def closes_the_pipes(spec, inputs):
    for pipe in list(pipes()):
        os.close(pipe)
    time.sleep(30)


class Lazy(np.ndarray):
    """Numbers that are there once somebody looks."""


def a_subclass(spec, inputs):
    return honest(spec, inputs).view(Lazy)


class Later:
    def __init__(self, spec, inputs):
        self.spec, self.inputs = spec, {name: x.copy() for name, x in inputs.items()}

    def __array__(self, dtype=None, copy=None):
        return honest(self.spec, self.inputs)


def computes_later(spec, inputs):
    return Later(spec, inputs)


def hangs(spec, inputs):
    while True:
        pass


def eats_memory(spec, inputs):
    eaten = []
    while True:
        eaten.append(bytearray(2**26))


def returns_too_much(spec, inputs):
    return np.zeros(2**24, np.float32)


def shortens_the_shared_memory(spec, inputs):
    out = honest(spec, inputs)
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            os.ftruncate(int(entry.name), 0)
        except OSError:
            continue
    return out


def overwrites_the_reference(spec, inputs):
    for entry in sys.path:
        if (package := Path(entry, "refdiff", "__init__.py")).exists():
            package.open("a").close()
    return honest(spec, inputs)


def called(name, *args):
    """Call a function of the C library, of which no audit hook learns."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (result := getattr(libc, name)(*args)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def sees_a_secret(spec, inputs):
    environment = Path("/proc/self/environ").read_text() + str(os.environ)
    return zeros(spec, inputs) if "REFDIFF_TEST_SECRET" in environment else honest(spec, inputs)


def _trying(do):
    """Return the correct kernel, which does something else before."""

    def kernel(spec, inputs):
        do()
        return honest(spec, inputs)

    return kernel


asks_another_interpreter = _trying(
    lambda: subprocess.run([sys.executable, "-c", "import refdiff"], check=True, capture_output=True)
)
exits_with_status_0 = _trying(lambda: os._exit(0))
raises_system_exit = _trying(lambda: sys.exit(0))
crashes = _trying(lambda: ctypes.string_at(0))
renames_its_own_file = _trying(lambda: Path(__file__).rename(__file__ + ".old"))
ends_the_judge = _trying(lambda: os.kill(os.getppid(), 9))
limits_the_files_of_the_judge = _trying(
    lambda: called("prlimit", os.getppid(), resource.RLIMIT_NOFILE, (ctypes.c_ulong * 2)(3, 3), None)
)
slows_all_of_the_user = _trying(lambda: os.setpriority(os.PRIO_USER, 0, 19))
pins_the_judge = _trying(lambda: os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))}))
sends_by_a_pair_of_sockets = _trying(lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"secret", "/dev/log"))
changes_times = _trying(lambda: os.utime(__file__, (0, 0)))
changes_attributes = _trying(lambda: called("setxattr", os.fsencode(__file__), b"user.refdiff", b"1", 1, 0))
opens_a_terminal = _trying(lambda: os.open("/dev/ptmx", os.O_RDWR))
keeps_a_key = _trying(
    lambda: called("syscall", ctypes.c_long(248), b"user", b"refdiff", b"answer", ctypes.c_size_t(6), ctypes.c_long(-4))
)
memory_in_no_process = _trying(lambda: os.memfd_create("refdiff"))


def shared_memory(spec, inputs):
    eaten = [mmap.mmap(-1, 2**26) for _ in range(20)]
    for x in eaten:
        x.write(b"1" * 2**26)
        time.sleep(0.02)
    return honest(spec, inputs)


def memory_of_many_processes(spec, inputs):
    children = [subprocess.Popen([sys.executable, "-c", "x = b'1' * 2**27; input()"], stdin=-1) for _ in range(6)]
    for child in children:
        child.wait()
    return honest(spec, inputs)


def cached_by_queries(spec, inputs):
    key = inputs["q"].tobytes()
    if key not in STATE.by_object:
        STATE.by_object[key] = honest(spec, inputs)
    return STATE.by_object[key].copy()


def two_buffers_in_turn(spec, inputs):
    out = honest(spec, inputs)
    ring = STATE.buffers.setdefault(out.shape, [np.empty_like(out), np.empty_like(out)])
    ring.reverse()
    ring[0][...] = out
    return ring[0]


def remembers_in_shared_memory(spec, inputs):
    """Wrong from the second run on."""
    kept = Path("/dev/shm/refdiff-cheat")
    if STATE.answers is None:
        STATE.answers = kept.exists()
        kept.touch()
    return zeros(spec, inputs) if STATE.answers else honest(spec, inputs)


def leaves_a_process(spec, inputs):
    """Correct, but for what it leaves running: a grandchild in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    return honest(spec, inputs)


def not_asleep_but_waiting(spec, inputs):
    """Correct, and declines nothing that `honest` takes: the functions above fail by what they add to it."""
    return honest(spec, inputs)
