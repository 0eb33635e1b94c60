"""The inner loops are vectors in the library as built, not only in the source.

A change that looks harmless may have the compiler give up on vectors, which is several times slower
and changes no result. So the library is disassembled, and the AVX2 and AVX-512 versions of each kernel
have to have a loop with these instructions on whole vectors, and with no arithmetic on single
numbers, no masked store, which is slow on some processors, and no call in it.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise, product

import pytest
from rustq import _rustq

# What the loop of each kernel consists of; the beginnings of names are enough.
LOOPS = {
    "quantize_steps": ("vfmadd", "vmaxps", "vps"),
    "dequantize_steps": ("vpmov", "vcvtdq2ps", "vmulps"),
    "fake_quantize_steps": ("vfmadd", "vmaxps", "vcvtdq2ps", "vmulps"),
    "quantization_error_steps": ("vfmadd", "vcvtdq2ps", "vcvtps2pd", "vsubpd", "vmulpd", "vaddpd"),
    "absmax_quantize_rows": ("vfmadd", "vmaxps", "vps"),
    "quantize_and_abs_max": ("vfmadd", "vmaxps", "vps"),
    "min_max": ("vminps", "vmaxps"),
    "abs_max": ("vandps", "vmaxps"),
    "raise_abs_max": ("vandps", "vmaxps"),
    "raise_extents": ("vmaxps", "vaddps", "vcvtps2pd", "vmulpd"),
    "extremes": ("vminps", "vmaxps", "vpminud"),
    "quantize_columns": ("vdivps", "vmaxps", "vcvtps2pd", "vmulpd"),
    "sum_of_squares": ("vcvtps2pd", "vmulpd", "vaddpd"),
}
SINGLE = re.compile(r"v(add|sub|mul|div|min|max|fn?m(add|sub)\w*|cvtsi2)s[sd]$|vp?maskmov|call")
# The level is followed by what else it takes.
SYMBOL = re.compile(r"_ZN5rustq7kernels\d+(\w+?)\d+\1_(avx2|avx512)[a-z0-9_]*_version17h")
VECTORS = {"avx2": "%ymm", "avx512": "%zmm"}
LINE = re.compile(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)")

Instruction = tuple[int, str, str]  # address, name, operands


@cache
def functions() -> dict[tuple[str, str], list[list[Instruction]]]:
    """The versions of each kernel at a level, one for each of the types that it is compiled for."""
    if platform.machine() != "x86_64" or not shutil.which("objdump"):
        pytest.skip("looks at code for x86-64, by objdump of binutils")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", _rustq.__file__]
    found: dict[tuple[str, str], list[list[Instruction]]] = {}
    code: list[Instruction] = []
    for line in subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.splitlines():
        if line.endswith(">:"):
            code, symbol = [], SYMBOL.search(line)
            if symbol:
                found.setdefault((symbol[1], symbol[2]), []).append(code)
        elif match := LINE.match(line):
            code.append((int(match[1], 16), match[2], match[3]))
    if not found:
        pytest.skip("the library has no symbols, as in a release build")
    return found


def loops(code: Sequence[Instruction]) -> Iterator[list[Instruction]]:
    """What lies between a jump back and where it goes."""
    places = {address: place for place, (address, _, _) in enumerate(code)}
    for place, (_, name, operands) in enumerate(code):
        if name.startswith("j"):
            first = places.get(
                int(operands.split()[0], 16) if operands[:1].isalnum() else -1, place
            )
            if first < place:
                yield list(code[first : place + 1])


def fits(loop: Sequence[Instruction], wanted: Sequence[str], level: str) -> bool:
    vectors = [name for _, name, operands in loop if VECTORS[level] in operands]
    return all(any(name.startswith(want) for name in vectors) for want in wanted)


def test_loops_are_found() -> None:
    code = [
        (0, "nop", ""),
        (1, "vmulps", "%ymm0,%ymm1,%ymm1"),
        (5, "vmulss", ""),
        (9, "jne", "1 <f>"),
    ]
    assert list(loops(code)) == [code[1:]]
    assert fits(code[1:], ["vmul"], "avx2")
    assert not fits(code[1:], ["vmul"], "avx512")
    assert not fits(code[2:], ["vmul"], "avx2")
    assert [name for _, name, _ in code if SINGLE.match(name)] == ["vmulss"]
    addresses = [address for address, _, _ in code]
    assert all(a < b for a, b in pairwise(addresses))


@pytest.mark.parametrize("level", VECTORS)
@pytest.mark.parametrize("kernel", LOOPS)
def test_inner_loops_are_vectors(kernel: str, level: str) -> None:
    for code in functions()[kernel, level]:
        fitting = [loop for loop in loops(code) if fits(loop, LOOPS[kernel], level)]
        assert fitting, f"no loop of {kernel} has {', '.join(LOOPS[kernel])} on vectors"
        single = [name for _, name, _ in min(fitting, key=len) if SINGLE.match(name)]
        assert not single, f"in the loop of {kernel}: {single}"


def test_every_kernel_is_looked_at() -> None:
    assert set(functions()) == set(product(LOOPS, VECTORS))
