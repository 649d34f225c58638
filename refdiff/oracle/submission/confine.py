"""Drop rights irrevocably, then run a program: limit memory, files, connections and access to other processes.

`process.py` starts this file as a program before any code of the kernel runs. Linux enforces the restrictions on the
process and its children until they end, by up to three means:

    Landlock            which files may be read and written, of /dev/shm none; the memory of other processes
    seccomp             system calls: sockets, processes, signals, limits and priorities of others, rights and times of
                        files, memory that has no owner
    network namespace   a network without devices, where users may make one

The first line of the responses says which of them are in force.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_FILE = 2**28
"""The most bytes of one file that a kernel may write; a compiled kernel has some megabytes."""
DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd", "dxg", "accel*", "vfio")
"""What a kernel may open in /dev: what Python and GPUs need, and no terminal."""
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38  # of prctl

# Landlock: rights to files, connections and signals; CHANGES has no right to list a folder, which imports need
WRITE_FILE, READ_FILE, REFER, TRUNCATE = (1 << n for n in (1, 2, 13, 14))
CHANGES = WRITE_FILE | sum(1 << n for n in range(4, 13))
CONNECT_TCP, OTHER_SOCKETS_AND_SIGNALS = 1 << 1, 0b11
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, VERSION_FLAG, PATH_BENEATH = 444, 445, 446, 1, 1

# libseccomp: what a system call returns, how an argument is compared, and attributes of a filter
ALLOW, RETURN_ERROR = 0x7FFF0000, 0x00050000
NOT_EQUAL, MASKED_EQUAL = 1, 7
OTHER_ARCHITECTURES, ALLOW_SPECULATION = 2, 7
CLONE_THREAD, NEW_USER, NEW_NETWORK, ALL_NAMESPACES = 1 << 16, 1 << 28, 1 << 30, 0x7E020000
AF_UNIX, SOCK_STREAM, SOCK_SEQPACKET, SOCKET_TYPE = 1, 1, 5, 0xF

REFUSED = (
    "connect", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_open", "pidfd_send_signal",
    "pidfd_getfd", "migrate_pages", "shmget", "msgget", "semget", "mq_open", "add_key", "request_key", "keyctl",
    "mount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount", "fsopen", "fspick",
    "mount_setattr", "unshare", "setns", "bpf", "perf_event_open", "userfaultfd",
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat", "utime", "utimes", "futimesat",
    "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr",
    "removexattrat", "file_setattr",
)  # fmt: skip
"""System calls that reach other processes, keep memory without an owner, enter a namespace, attack Linux, or change
rights, owners, times and attributes of files, which Landlock leaves alone."""
ABSENT = ("clone3", "memfd_create", "memfd_secret", "io_uring_setup")
"""System calls that seem not to exist, so that libraries use others, which seccomp can judge."""
OF_A_PROCESS = ("prlimit64", "sched_setscheduler", "sched_setparam", "sched_setattr", "move_pages")
"""System calls whose first argument is a process: 0, which is this one."""
SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
NEW_CALLS = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433,
    "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "memfd_secret": 447, "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467,
    "file_setattr": 469,
}  # fmt: skip
"""Numbers, the same on all architectures, of system calls whose names an old libseccomp lacks."""


class Rule(NamedTuple):
    """A system call that returns `error`; all calls of it, or those whose argument `arg` compares so with `values`."""

    name: str
    arg: int | None = None
    comparison: int = NOT_EQUAL
    values: tuple[int, int] = (0, 0)
    error: int = errno.EPERM


def rules(processes: bool) -> list[Rule]:
    """Return what seccomp refuses; processes: whether this process may start others, and send signals to them."""
    found = [Rule(name) for name in REFUSED]
    found += [Rule(name, error=errno.ENOSYS) for name in ABSENT]
    found += [Rule(name, 0) for name in OF_A_PROCESS]
    found += [Rule("sched_setaffinity", 0, error=0)]  # threads are pinned too, which may have no effect
    found += [Rule("setpriority", 0), Rule("setpriority", 1), Rule("ioprio_set", 1)]
    for name in ("socket", "socketpair"):  # nothing that sends without `connect`
        types = set(range(SOCKET_TYPE + 1)) - {SOCK_STREAM, SOCK_SEQPACKET}
        found += [Rule(name, 0, NOT_EQUAL, (AF_UNIX, 0))]
        found += [Rule(name, 1, MASKED_EQUAL, (SOCKET_TYPE, kind)) for kind in types]
    bits = [1 << n for n in range(32) if ALL_NAMESPACES >> n & 1]
    found += [Rule("clone", 0, MASKED_EQUAL, (bit, bit)) for bit in bits]
    if not processes:
        found += [Rule("clone", 0, MASKED_EQUAL, (CLONE_THREAD, 0)), Rule("fork"), Rule("vfork")]
        found += [Rule(name, 0, NOT_EQUAL, (os.getpid(), 0)) for name in SIGNALS]
    return found


def filter_system_calls(processes: bool) -> bool:
    """Refuse system calls by libseccomp; return whether this system has it."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ALLOW))
    done = [library.seccomp_attr_set(context, OTHER_ARCHITECTURES, RETURN_ERROR | errno.EPERM)]
    library.seccomp_attr_set(context, ALLOW_SPECULATION, 1)  # faster; an old libseccomp has no such attribute
    for rule in rules(processes):
        number = NEW_CALLS.get(rule.name) or library.seccomp_syscall_resolve_name(rule.name.encode())
        compared = b"" if rule.arg is None else struct.pack("=IIQQ", rule.arg, rule.comparison, *rule.values)
        count = int(rule.arg is not None)
        done.append(library.seccomp_rule_add_array(context, RETURN_ERROR | rule.error, number, count, compared))
    return bool(library.seccomp_load(context) == 0 and not any(done))


def leave_network() -> bool:
    """Enter an empty network namespace; return whether this system lets its users make one."""
    user, group = os.getuid(), os.getgid()
    if sys.platform != "linux" or ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK):
        return False
    # root is another user inside, and so has no rights of root after `exec`
    for file, text in {
        "setgroups": "deny",
        "uid_map": f"{user or 65534} {user} 1",
        "gid_map": f"{group} {group} 1",
    }.items():
        with contextlib.suppress(OSError):
            Path("/proc/self", file).write_text(text, encoding="ascii")
    return True


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


def restrict_files(hidden: list[str], scratch: str) -> bool:
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
            allow(device, files & (READ_FILE | WRITE_FILE | TRUNCATE))
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
    """Confine this process; return what is in force."""
    found = {"network namespace": leave_network()}
    found["Landlock"] = restrict_files(config["hidden"], config["scratch"])
    end_with_parent(config["judge"])
    found["seccomp"] = filter_system_calls(config["processes"])
    return [name for name, on in found.items() if on]


if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    limit_resources(config["memory"])
    head = json.dumps({"status": "confined", "by": confine(config)}).encode()
    os.write(config["responses"], len(head).to_bytes(4, "little") + head)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(config["path"])}
    os.execve(sys.executable, [sys.executable, "-s", "-B", sys.argv[2], sys.argv[1]], environment)  # noqa: S606
