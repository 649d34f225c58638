"""Drop rights irrevocably, then run a program: limit memory, files, connections and access to other processes.

`process.py` starts this file as a program before any code of the kernel runs. Linux enforces the restrictions on the
process and its children until they end, by up to three means:

    Landlock     which files may be read and written; the memory of other processes
    seccomp      system calls: sockets, processes, signals, limits and priorities of others, memory that has no owner
    namespaces   every file read-only but for the scratch folder, a /dev/shm and a network of its own

The first line of the response pipe says which of them are in force.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_FILE = 2**28
"""The most bytes of one file that a kernel may write; a compiled kernel has some megabytes."""
DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "nvidia*", "dri", "kfd", "dxg", "accel*", "vfio")
"""What a kernel may open in /dev: what Python and GPUs need, and no terminal."""
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38  # of prctl

# Landlock: rights to files, connections and signals; CHANGES has no right to list a folder, which imports need
WRITE_FILE, READ_FILE, MAKE_REG, REMOVE_FILE, REFER, TRUNCATE = (1 << n for n in (1, 2, 8, 5, 13, 14))
CHANGES = WRITE_FILE | sum(1 << n for n in range(4, 13))
CONNECT_TCP, OTHER_SOCKETS_AND_SIGNALS = 1 << 1, 0b11
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, VERSION_FLAG, PATH_BENEATH = 444, 445, 446, 1, 1

# namespaces
NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_NET = 1 << 17, 1 << 27, 1 << 28, 1 << 30
ALL_NAMESPACES = 0x7E020000
MOUNT_SETATTR, RECURSIVE, READ_ONLY = 442, 0x8000, 1
NO_SETUID, NO_DEVICES, BIND, PRIVATE = 2, 4, 1 << 12, 1 << 18

# seccomp: BPF instructions, and what a system call returns
LOAD, IF_EQUAL, IF_AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOWED, RETURN_ERROR = 0x7FFF0000, 0x00050000
SET_FILTER, ALLOW_SPECULATION = 1, 4
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of `SYSCALLS` of a machine, and the number by which seccomp calls it."""
SECCOMP = (317, 277)
MASK = 0xFFFFFFFF
CLONE_THREAD = 1 << 16
AF_UNIX, SOCK_STREAM, SOCK_SEQPACKET, SOCKET_TYPE = 1, 1, 5, 0xF


class Rule(NamedTuple):
    """A system call that fails with `error`, unless its argument `arg` & `mask` is one of `values`.

    numbers: on x86_64 and aarch64; None where the machine has no such call. arg: None refuses every call.
    """

    numbers: tuple[int | None, int | None]
    arg: int | None = None
    values: tuple[int, ...] = ()
    mask: int = MASK
    error: int = errno.EPERM


REFUSED = {
    "connect": (42, 203),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "migrate_pages": (256, 238),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
}  # fmt: skip
"""System calls that reach other processes, keep memory without an owner, leave a namespace, or attack Linux."""
ABSENT = {
    "clone3": (435, 435), "memfd_create": (319, 279), "memfd_secret": (447, 447), "io_uring_setup": (425, 425),
}  # fmt: skip
"""System calls that seem not to exist, so that libraries use others, which seccomp can judge."""
OF_A_PROCESS = {
    "prlimit64": (302, 261), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "move_pages": (279, 239),
}  # fmt: skip
"""System calls whose first argument is a process: this one, or 0."""
SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip


def rules(processes: bool) -> list[Rule]:
    """Return what seccomp refuses; processes: whether this process may start others, and send signals to them."""
    own = (0, os.getpid())
    found = [Rule(numbers) for numbers in REFUSED.values()]
    found += [Rule(numbers, error=errno.ENOSYS) for numbers in ABSENT.values()]
    found += [Rule(numbers, 0, own) for numbers in OF_A_PROCESS.values()]
    found += [Rule((203, 122), 0, own, error=0)]  # sched_setaffinity: threads are pinned too, which may have no effect
    found += [Rule((141, 140), arg, (0,)) for arg in (0, 1)]  # setpriority: of this process
    found += [Rule((251, 30), 1, (0,))]  # ioprio_set
    for numbers in ((41, 198), (53, 199)):  # socket, socketpair: nothing that sends without `connect`
        found += [Rule(numbers, 0, (AF_UNIX,)), Rule(numbers, 1, (SOCK_STREAM, SOCK_SEQPACKET), SOCKET_TYPE)]
    if processes:
        found += [Rule((56, 220), 0, (0,), ALL_NAMESPACES)]  # clone
    else:
        found += [Rule((56, 220), 0, (CLONE_THREAD,), CLONE_THREAD | ALL_NAMESPACES)]
        found += [Rule((number, None)) for number in (57, 58)]  # fork, vfork
        found += [Rule(numbers, 0, own) for numbers in SIGNALS.values()]
    return found


def bpf(rules: list[Rule], column: int, architecture: int) -> bytes:
    """Return the rules as a program of BPF: each compares the number of the call, then an argument.

    Jumps count instructions from the next one. A call in another architecture's numbers fails.
    """

    def instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    def refuse(error: int) -> bytes:
        return instruction(RETURN, RETURN_ERROR | error)

    program = instruction(LOAD, 4) + instruction(IF_EQUAL, architecture, 1) + refuse(errno.EPERM)
    program += instruction(LOAD, 0) + instruction(IF_AT_LEAST, 1 << 30, 0, 1) + refuse(errno.EPERM)  # x32
    for rule in rules:
        if (number := rule.numbers[column]) is None:
            continue
        body = b""
        if rule.arg is not None:
            body += instruction(LOAD, 16 + 8 * rule.arg) + instruction(AND, rule.mask)
            left = range(len(rule.values), 0, -1)
            body += b"".join(instruction(IF_EQUAL, x, n) for n, x in zip(left, rule.values, strict=True))
        body += refuse(rule.error)
        program += instruction(LOAD, 0) + instruction(IF_EQUAL, number, 0, len(body) // 8) + body
    return program + instruction(RETURN, ALLOWED)


def filter_system_calls(processes: bool) -> bool:
    """Refuse system calls by seccomp; return whether this system can."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    column, architecture = ARCHITECTURES[platform.machine()]
    program = ctypes.create_string_buffer(code := bpf(rules(processes), column, architecture), len(code))
    listed = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return bool(libc.syscall(SECCOMP[column], SET_FILTER, ALLOW_SPECULATION, listed) == 0)


def enter_namespaces(scratch: str, memory: int) -> bool:
    """Make files outside `scratch` read-only, and /dev/shm and the network private; return whether this system does."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    user, group = os.getuid(), os.getgid()
    folder, size = os.fsencode(scratch), b"mode=1777,size=%d" % memory

    def set_attributes(path: bytes, flags: int, *attributes: int) -> bool:
        return bool(libc.syscall(MOUNT_SETATTR, -1, path, flags, struct.pack("QQQQ", *attributes), 32) == 0)

    if libc.unshare(NEW_USER | NEW_MOUNTS | NEW_IPC | NEW_NET):
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        # root is another user inside, and so has no rights of root after `exec`
        Path("/proc/self/uid_map").write_text(f"{user or 65534} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        here = os.open(scratch, os.O_PATH)  # it may be beneath /dev/shm, and then is made there anew
        done = set_attributes(b"/", RECURSIVE, READ_ONLY, 0, PRIVATE, 0)
        done = done and libc.mount(b"shm", b"/dev/shm", b"tmpfs", NO_SETUID | NO_DEVICES, size) == 0
        Path(scratch).mkdir(parents=True, exist_ok=True)
        done = done and libc.mount(b"/proc/self/fd/%d" % here, folder, None, BIND, None) == 0
        os.close(here)
        os.chdir(scratch)
        return done and set_attributes(folder, 0, 0, READ_ONLY, 0, 0)
    return False


def limit_resources(memory: int) -> None:
    """Limit the memory and file size of this process and its children; when memory runs out, they are killed first."""
    import resource  # Windows has no such module, and `judge_file` says that it is not supported

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def readable_paths(hidden: list[str], folder: str = "/") -> Iterator[str]:
    """Yield paths that cover everything but the hidden folders.

    A Landlock right extends to everything beneath a path, so the parents of hidden folders are replaced by their other
    entries.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_symlink() or entry.path in hidden:  # the target of a link has its own path
                continue
            if any(path.startswith(f"{entry.path}/") for path in hidden):
                yield from readable_paths(hidden, entry.path)
            else:
                yield entry.path


def landlock_version() -> int:
    """Return the version of Landlock, 0 if the system has none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def restrict_files(hidden: list[str], scratch: str, shared_memory: bool) -> bool:
    """Forbid reading beneath `hidden` and writing outside `scratch` and `DEVICES`; return whether this system can.

    Raises:
        OSError: a system call of Landlock fails.
    """
    if not (version := landlock_version()):
        return False
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
        return result

    files = CHANGES | READ_FILE | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = struct.pack("QQQ", files, CONNECT_TCP, OTHER_SOCKETS_AND_SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = checked(libc.syscall(CREATE_RULESET, handled, size, 0))

    def allow(path: str | Path, rights: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it was removed, or this user may not open it
            return
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= WRITE_FILE | READ_FILE | TRUNCATE
        checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0))
        os.close(descriptor)

    for path in readable_paths([*hidden, "/dev"]):
        allow(path, READ_FILE)
    for pattern in DEVICES:
        for device in Path("/dev").glob(pattern):
            if device.name != "shm" or shared_memory:
                allow(device, files & (READ_FILE | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE))
    allow(os.path.realpath(scratch), files)
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)
    return True


def end_with_parent(judge: int) -> None:
    """Have Linux kill this process when the judge ends, for example by SIGKILL; a kernel may never return."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != judge:  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)


def confine(config: dict[str, Any]) -> list[str]:
    """Confine this process; return what is in force.

    Without namespaces /dev/shm is everybody's: only a kernel that starts processes needs it.
    """
    scratch, processes = config["scratch"], config["processes"]
    namespaces = enter_namespaces(scratch, config["memory"])
    landlock = restrict_files(config["hidden"], scratch, namespaces or processes)
    end_with_parent(config["judge"])
    seccomp = filter_system_calls(processes)
    found = {"Landlock": landlock, "seccomp": seccomp, "namespaces": namespaces}
    return [name for name, on in found.items() if on]


if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    limit_resources(config["memory"])
    head = json.dumps({"status": "confined", "by": confine(config)}).encode()
    os.write(config["responses"], len(head).to_bytes(4, "little") + head)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(config["path"])}
    os.execve(sys.executable, [sys.executable, "-s", "-B", sys.argv[2], sys.argv[1]], environment)  # noqa: S606
