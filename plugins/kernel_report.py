"""What can be known of the CUDA kernels without a GPU: registers, spills, occupancy, instruction mix, and roofline bounds.

All of it is an estimate from the compiled code, nothing is measured. `python -m amsa.plugins.kernel_report [--arch sm_75]`
prints it; with `--check` it exits with 1 where a kernel spills, fills too little of a multiprocessor or lost 128-bit loads.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .gpus import RTX_2080_TI, Gpu
from .nvrtc import ARCHITECTURES, KernelError, compile_cubin, kernel_sources, wheel_file
from .patch_match.plan import ROUNDS
from .workloads import Work, workloads

LOWEST_OCCUPANCY = 0.5


@dataclass(frozen=True)
class Expectation:
    """Of a kernel: fewest 128-bit loads from global memory that its code may have, and the bytes of dynamic shared memory that
    its launches ask for, which the code does not say."""

    vector_loads: int = 0
    shared: int = 0


EXPECTATIONS: dict[str, Expectation] = {
    "deformable_sample_f16": Expectation(vector_loads=4),  # the corners
    "deformable_sample_f32": Expectation(vector_loads=4),
    # As many as a lane holds of the query's patch, and as many of a candidate's.
    **{
        f"patch_match_step_{kind}_{rounds}": Expectation(vector_loads=2 * rounds)
        for kind, held in ROUNDS.items()
        for rounds in held
    },
    **{f"patch_match_step_{kind}_0": Expectation(vector_loads=2) for kind in ROUNDS},
    **{f"patch_match_energy_{kind}": Expectation(vector_loads=1) for kind in ROUNDS},
}

# What the roofline is estimated for: a name, and a function that lists the launches of one run.
WORKLOADS = workloads()


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of a multiprocessor (SM): threads and blocks resident at once, bytes of shared memory, the units in which blocks get
    it, and what the driver reserves for each; `counted`: where a kernel uses any, the compiler's figure contains the reserve."""

    threads: int
    blocks: int
    shared: int
    granularity: int = 128
    reserved: int = 1024
    counted: bool = False


# CUDA's cuda_occupancy.h and the table of compute capabilities in the CUDA programming guide
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(1024, 16, 64 * 1024, granularity=256, reserved=0),
    "sm_80": Multiprocessor(2048, 32, 164 * 1024),
    "sm_86": Multiprocessor(1536, 16, 100 * 1024),
    "sm_89": Multiprocessor(1536, 24, 100 * 1024),
    "sm_90": Multiprocessor(2048, 32, 228 * 1024, counted=True),
    "sm_120": Multiprocessor(1536, 24, 100 * 1024, counted=True),
}


def occupancy(arch: str, threads: int, registers: int, shared: int) -> tuple[float, str]:
    """Resident threads as a share of the most that fit, and what limits them: "threads", "blocks", "registers" or "shared".
    Takes threads per block and registers per thread, at least 1 each, and bytes of static and dynamic shared memory per block."""
    sm, warps, partitions = MULTIPROCESSORS[arch], -(-threads // 32), 4  # each has 65,536 registers in four partitions
    warp_registers = -(-registers * 32 // 256) * 256  # a warp gets registers in units of 256, all from one partition
    resident_warps = 65536 // partitions // warp_registers * partitions
    # The hardware admits a block as if its warps were spread evenly, however few they are.
    fits = -(-warps // partitions) * partitions * warp_registers <= 65536
    block_shared = -(-(shared + sm.reserved) // sm.granularity) * sm.granularity
    blocks = {
        "threads": sm.threads // 32 // warps,
        "blocks": sm.blocks,
        "registers": resident_warps // warps if fits else 0,
        "shared": sm.shared // block_shared if block_shared else sm.blocks,
    }
    limit = min(blocks, key=lambda k: blocks[k])
    return blocks[limit] * warps / (sm.threads // 32), limit


@dataclass(frozen=True)
class KernelFigures:
    """What one compiled kernel needs: threads per block at most (0 without launch bounds), registers per thread, bytes of static
    shared memory per block, bytes of local memory (the stack) per thread. `instructions` says how many of each kind the code has,
    not how many run; memory accesses carry their bits, as in "LDG.128"."""

    name: str
    arch: str
    threads: int
    registers: int
    shared: int
    stack: int
    instructions: Counter[str]

    @property
    def spills(self) -> tuple[int, int]:
        """Bytes per thread that the code stores to and loads from local memory: spilled registers, and arrays indexed at run
        time. As the compiler counts them: once, however often a loop repeats them."""
        accesses = [(kind[:4], n * int(kind[4:]) // 8) for kind, n in self.instructions.items() if kind[:4] in ("STL.", "LDL.")]
        return sum(n for kind, n in accesses if kind == "STL."), sum(n for kind, n in accesses if kind == "LDL.")

    @property
    def loads(self) -> tuple[int, int]:
        """The code's loads from global memory: those of 128 bits, and all."""
        return self.instructions["LDG.128"], sum(n for k, n in self.instructions.items() if k.startswith("LDG."))

    def occupancy(self, dynamic: int = 0) -> tuple[float, str]:
        """With blocks as large as they may be, and `dynamic` bytes of shared memory beside the static."""
        return occupancy(self.arch, self.threads or 1024, self.registers, self.shared + dynamic)


_USAGE = re.compile(r"^ Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) ", re.MULTILINE)
_INFO = re.compile(r"^\.nv\.info\.(\S+)\n((?:(?!\.).*\n)*)", re.MULTILINE)  # up to the next section
_MAX_THREADS = re.compile(r"EIATTR_MAX_THREADS\n.*\n\s*Value:((?:\s0x\w+)+)")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)
_MEMORY = ("LDG", "STG", "LD", "ST", "LDS", "STS", "LDL", "STL")


def _kind(mnemonic: str, operands: str) -> str:
    """As what an instruction is counted: "LDG.E.128.SYS" as "LDG.128", "IDP.4A.S8.S8" as "IDP"."""
    name, *modifiers = mnemonic.split(".")
    if "MOV" in modifiers or (name == "HFMA2" and ", -RZ, RZ, " in operands):
        return "MOV"  # the compiler moves values, and makes constants, in whichever unit is idle
    if name not in _MEMORY:
        return name
    bits = next((m.lstrip("US") for m in modifiers if m in ("U8", "S8", "U16", "S16", "64", "128", "256")), "32")
    return f"{name}.{bits}"


def read_cubin(cubin: bytes, arch: str) -> list[KernelFigures]:
    """Figures of every kernel in a cubin, by name. Needs cuobjdump and nvdisasm from their wheels; else KernelError."""
    wheels = "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"
    # cuobjdump runs nvdisasm, which both wheels put beside it
    cuobjdump, _ = (wheel_file(w, f"bin/{w.rsplit('-', 1)[1]}", f"pip install {' '.join(wheels)}") for w in wheels)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([cuobjdump, "-res-usage", "-elf", "-sass", file.name], capture_output=True, text=True)
    if done.returncode:
        raise KernelError(f"cuobjdump fails (exit status {done.returncode})\n{done.stderr.strip()}")
    bounds = {name: _MAX_THREADS.search(attributes) for name, attributes in _INFO.findall(done.stdout)}
    threads = {name: math.prod(int(n, 16) for n in b[1].split()) if b else 0 for name, b in bounds.items()}
    code = {}
    for section in re.split(r"^\s+Function : ", done.stdout, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        code[name.strip()] = Counter(_kind(m, operands) for m, operands in _INSTRUCTION.findall(body) if m != "NOP")
    kernels, sm = [], MULTIPROCESSORS[arch]
    for name, registers, stack, shared in _USAGE.findall(done.stdout):
        if not code.get(name) or name not in threads:
            raise KernelError(f"cuobjdump's output is not understood: no code or no attributes of {name}")
        static = int(shared) - (sm.reserved if sm.counted and int(shared) else 0)
        kernels.append(KernelFigures(name, arch, threads[name], int(registers), static, int(stack), code[name]))
    return sorted(kernels, key=lambda k: k.name)


def failures(kernels: list[KernelFigures], expectations: dict[str, Expectation] = EXPECTATIONS) -> list[str]:
    """What is wrong with the kernels, a line each."""
    names = [k.name for k in kernels]
    found = [f"{name}: no such kernel, but something is expected of it" for name in expectations if name not in names]
    for k in kernels:
        expected = expectations.get(k.name, Expectation())
        ratio, limit = k.occupancy(expected.shared)
        if not k.threads:
            found.append(f"{k.name}: declares no launch bounds")
        if any(k.spills):
            found.append(f"{k.name}: spills; {k.spills[0]} bytes stored to local memory and {k.spills[1]} loaded, per thread")
        if ratio < LOWEST_OCCUPANCY:
            found.append(f"{k.name}: occupancy {ratio:.0%} on {k.arch}, limited by {limit}; {LOWEST_OCCUPANCY:.0%} wanted")
        if k.loads[0] < expected.vector_loads:
            found.append(f"{k.name}: {k.loads[0]} loads of 128 bits; {expected.vector_loads} wanted")
    return found


def roofline(nbytes: float, flops: float, device: Gpu = RTX_2080_TI) -> tuple[float, float, float]:
    """Least seconds for a launch's memory traffic, and for its arithmetic in single and in half precision. The launch takes at
    least the larger of memory and arithmetic. `nbytes` counts each byte once: the caches are taken to catch what repeats."""
    return nbytes / device.bandwidth, flops / device.fp32, flops / device.fp32 / 2


def roofline_table(work: Iterable[Work], device: Gpu = RTX_2080_TI) -> str:
    """A line per kernel, over all its launches, and their sum. The least time is that with single-precision arithmetic."""
    sums: dict[str, list[float]] = {}
    for kernel, nbytes, flops in work:
        memory, single, half = (seconds * 1e6 for seconds in roofline(nbytes, flops, device))
        row = 1, nbytes / 1e6, flops / 1e9, memory, single, half, max(memory, single)
        sums[kernel] = [a + b for a, b in zip(sums.get(kernel, [0.0] * 7), row, strict=True)]
    sums["total"] = [sum(column) for column in zip(*sums.values(), strict=True)] or [0.0] * 7
    lines = [_row("kernel", ("launches", "MB", "GFLOP", "memory us", "FP32 us", "FP16 us", "least us"))]
    lines += [_row(kernel, (f"{v[0]:.0f}", *(f"{x:.2f}" for x in v[1:]))) for kernel, v in sums.items()]
    return "\n".join(lines)


def _row(name: str, cells: Iterable[object]) -> str:
    return f"{name:<32}" + "".join(f"{c:>11}" for c in cells)


def kernel_table(kernels: list[KernelFigures], expectations: dict[str, Expectation] = EXPECTATIONS) -> str:
    """Per kernel a line with what it needs, and its instructions, the most frequent first."""
    lines = [_row("kernel", ("threads", "registers", "shared B", "stack B", "spilled B", "128-bit ld", "occupancy"))]
    for k in kernels:
        shared, (wide, loads) = expectations.get(k.name, Expectation()).shared, k.loads
        ratio, limit = k.occupancy(shared)
        cells = k.threads, k.registers, k.shared + shared, k.stack, sum(k.spills), f"{wide} of {loads}", f"{ratio:.0%}"
        lines.append(_row(k.name, cells) + f"  limited by {limit}")
        mix = ", ".join(f"{kind} {n}" for kind, n in k.instructions.most_common())
        lines.append(textwrap.fill(mix, 120, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m amsa.plugins.kernel_report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default=ARCHITECTURES[0], choices=ARCHITECTURES)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a kernel is worse than it must be")
    args = parser.parse_args(arguments)
    kernels = [k for source in kernel_sources() for k in read_cubin(compile_cubin(source, args.arch), args.arch)]
    print(f"{args.arch}: estimate from the compiled code, not measured\n{kernel_table(kernels)}")
    for name, launches in WORKLOADS:
        print(f"\n{name} on {RTX_2080_TI.name}: estimate, not measured\n{roofline_table(launches())}")
    if not args.check:
        return 0
    found = failures(kernels) if kernels else ["no plugins/*/kernels.cu"]
    print("\n" + ("\n".join(found) or "check: ok"))
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KernelError as e:
        sys.exit(str(e))
