"""The numbers of system calls, which nobody can see to be right: held against the system's own headers."""

import re
from pathlib import Path

import pytest

from streaming.audio import calls

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    # 64-bit ARM has the generic table, without the calls that others made unnecessary (open, fork, rename).
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
MACHINES = Path("/usr/include/linux/elf-em.h")
ALIKE = 424
"""From this number on, Linux 5.1, a new call has the same one on every architecture."""


def defined(path: Path) -> dict[str, int]:
    """Numbers of a header by name; with 64 bits the calls of `__NR3264_` are those without."""
    if not path.is_file():
        pytest.skip(f"no {path} here: install linux-libc-dev")
    found = re.findall(r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\b", path.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found}
    for count in ("syscalls", "arch_specific_syscall"):
        numbers.pop(count, None)
    return numbers


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_system(machine: str) -> None:
    column, _ = calls._MACHINES[machine]
    known = defined(HEADERS[machine])
    newest = max(known.values())
    assert newest > ALIKE
    partly = {name: numbers for name, (numbers, _, _) in calls.TO_OTHERS.items()}
    for name, numbers in (calls.REFUSED | partly).items():
        number = numbers[column]
        if number is None or number <= newest:
            assert number == known.get(name), name
        else:
            assert name not in known, name  # newer than the header


def test_new_calls_have_one_number() -> None:
    for name, (one, other) in calls.REFUSED.items():
        if max(one or 0, other or 0) >= ALIKE:
            assert one == other, name
    for column in (0, 1):
        numbers = [each[column] for each in calls.REFUSED.values() if each[column] is not None]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "EM_X86_64"), ("aarch64", "EM_AARCH64")])
def test_architectures_have_the_kernels_names(machine: str, name: str) -> None:
    """AUDIT_ARCH_… of linux/audit.h: the machine's number of ELF, 64 bits, little-endian."""
    if not MACHINES.is_file():
        pytest.skip(f"no {MACHINES} here: install linux-libc-dev")
    found = re.search(rf"^#define\s+{name}\s+(\d+)", MACHINES.read_text(), re.MULTILINE)
    assert found
    assert calls._MACHINES[machine][1] == 0x80000000 | 0x40000000 | int(found[1])
