"""NVRTC by ctypes: CUDA's run-time compiler, which needs neither a driver nor a device."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a multiprocessor: a thread's registers, bytes of its stack and of what was spilled."""

    registers: int
    stack: int
    spilled: int


class Nvrtc:
    """The compiler in a folder with the package nvidia-cuda-nvrtc or nvidia-cuda-nvrtc-cu12."""

    def __init__(self, folder: Path) -> None:
        (builtins,) = (p for p in folder.rglob("libnvrtc-builtins.so*") if ".alt." not in p.name)
        (library,) = (p for p in folder.rglob("libnvrtc.so*") if ".alt." not in p.name)
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library))

    def compile(self, source: str, options: Sequence[str], architecture: str) -> dict[str, Resources]:
        """Compile to machine code for a device such as `sm_90`; name → what each kernel takes. Warnings are errors."""
        log, code = self._compiled(source, [*options, f"-arch={architecture}", "--ptxas-options=-v"], "CUBIN")
        assert "warning" not in log, log
        assert len(code) > 0
        return resources(log)

    def ptx(self, source: str, options: Sequence[str], architecture: str) -> str:
        """Compile to PTX, the text before machine code, for devices from one such as `compute_90` on."""
        return self._compiled(source, [*options, f"-arch={architecture}"], "PTX")[1]

    def _compiled(self, source: str, options: Sequence[str], what: str) -> tuple[str, str]:
        """Return the log, and what was made."""
        program = ctypes.c_void_p()
        create = self._library.nvrtcCreateProgram
        assert create(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None) == 0
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self._library.nvrtcCompileProgram(program, len(options), encoded)
        log = self._text(program, "ProgramLog")
        assert not failed, log
        made = self._text(program, what, binary=what == "CUBIN")
        assert self._library.nvrtcDestroyProgram(ctypes.byref(program)) == 0
        return log, made

    def _text(self, program: ctypes.c_void_p, what: str, binary: bool = False) -> str:
        size = ctypes.c_size_t()
        assert getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        text = ctypes.create_string_buffer(size.value)
        assert getattr(self._library, f"nvrtcGet{what}")(program, text) == 0
        return text.raw.decode("latin-1") if binary else text.value.decode()


def resources(log: str) -> dict[str, Resources]:
    """Read what ptxas says of each kernel."""
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return {name: Resources(int(registers), int(stack), int(spilled)) for name, stack, spilled, registers in found}
