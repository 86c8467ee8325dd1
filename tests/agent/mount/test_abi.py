"""The tables of agent/mount/abi.py against the kernel header installed here, by way of a C compiler."""

from __future__ import annotations

import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from agent.mount import abi

PREFIXES: dict[type[IntEnum] | type[IntFlag], str] = {
    abi.Opcode: "FUSE_",
    abi.NotifyCode: "FUSE_NOTIFY_",
    abi.InitFlag: "FUSE_",
    abi.OpenFlag: "FOPEN_",
}
CONSTANTS = {
    "FUSE_KERNEL_VERSION": abi.KERNEL_MAJOR,
    "FUSE_ROOT_ID": abi.ROOT_NODEID,
    "FUSE_MIN_READ_BUFFER": abi.MIN_READ_BUFFER,
    "FUSE_UNIQUE_RESEND": abi.UNIQUE_RESEND,
    "FUSE_DEV_IOC_CLONE": abi.DEV_IOC_CLONE,
    "FUSE_DEV_IOC_BACKING_OPEN": abi.DEV_IOC_BACKING_OPEN,
    "FUSE_DEV_IOC_BACKING_CLOSE": abi.DEV_IOC_BACKING_CLOSE,
}


def stated() -> dict[str, int]:
    """Every number that the tables state, by the C expression that must have it."""
    numbers = dict(CONSTANTS)
    for kind, prefix in PREFIXES.items():
        numbers |= {prefix + str(member.name): int(member) for member in kind}
    for layout in abi.LAYOUTS:
        numbers[f"sizeof(struct {layout.name})"] = layout.size
        for field in layout.fields:
            numbers[f"offsetof(struct {layout.name}, {field.name})"] = field.offset
            numbers[f"sizeof(((struct {layout.name} *)0)->{field.name})"] = field.size
    return numbers


def since(expression: str) -> int:
    """The minor that an expression needs: that of its name, of its struct, or of its field, the highest."""
    words = expression.replace("(", " ").replace(")", " ").replace(",", " ").replace("->", " ").split()
    struct = next((word for word in words if word.startswith("fuse_")), "")
    names = (words[0], struct, f"{struct}.{words[-1]}")
    return max(abi.SINCE.get(name, 0) for name in names)


def run_c(directory: Path, body: str) -> str:
    source, program = directory / "program.c", directory / "program"
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/fuse.h>\n"
    source.write_text(head + "int main(void) {\n" + body + "\nreturn 0;\n}\n")
    compiled = subprocess.run(
        ["cc", "-Wall", "-o", program, source], capture_output=True, text=True, timeout=50, check=False
    )
    assert compiled.returncode == 0, compiled.stderr
    return subprocess.run([program], capture_output=True, text=True, timeout=10, check=True).stdout


def print_of(expression: str) -> str:
    return f'printf("%llu\\t%s\\n", (unsigned long long)({expression}), "{expression}");'


@pytest.fixture(scope="module")
def header_minor(tmp_path_factory: pytest.TempPathFactory) -> int:
    return int(run_c(tmp_path_factory.mktemp("minor"), print_of("FUSE_KERNEL_MINOR_VERSION")).split()[0])


def test_every_size_offset_and_number_is_the_installed_header_s(tmp_path: Path, header_minor: int) -> None:
    numbers = stated()
    known = [expression for expression in numbers if since(expression) <= header_minor]
    unknown = sorted(set(numbers) - set(known))
    print(
        f"linux/fuse.h is of protocol 7.{header_minor}; it does not know: {', '.join(unknown) or 'nothing'}"
    )
    output = run_c(tmp_path, "\n".join(print_of(expression) for expression in known))
    lines = (line.split("\t") for line in output.splitlines())
    assert {name: int(value) for value, name in lines} == {name: numbers[name] for name in known}


def test_what_the_header_defines_although_it_should_be_too_old_for_it_agrees_too(
    tmp_path: Path, header_minor: int
) -> None:
    numbers = stated()
    newer = [name for name in numbers if name.isidentifier() and since(name) > header_minor]
    body = "\n".join(f"#ifdef {name}\n{print_of(name)}\n#endif" for name in newer)
    lines = (line.split("\t") for line in run_c(tmp_path, body).splitlines())
    for value, name in lines:
        assert int(value) == numbers[name], name


def test_every_name_of_the_since_table_is_stated_somewhere() -> None:
    known = {name for name in stated() if name.isidentifier()}
    known |= {layout.name for layout in abi.LAYOUTS}
    known |= {f"{layout.name}.{field.name}" for layout in abi.LAYOUTS for field in layout.fields}
    assert set(abi.SINCE) <= known


def test_fields_lie_next_to_each_other_and_fill_the_struct() -> None:
    for layout in abi.LAYOUTS:
        end = 0
        for field in layout.fields:
            assert field.offset == end, (layout.name, field.name)
            end += field.size
        assert end == layout.size and layout.size % 8 == 0, layout.name


def test_numbers_newer_than_this_header_are_those_of_linux_6_18() -> None:
    assert abi.DEV_IOC_BACKING_OPEN == 0x4010E501
    assert abi.DEV_IOC_BACKING_CLOSE == 0x4004E502
    assert abi.InitFlag.PASSTHROUGH >> 32 == 1 << 5
    assert abi.InitFlag.HAS_RESEND >> 32 == 1 << 7
    assert abi.InitFlag.ALLOW_IDMAP >> 32 == 1 << 8
    assert (abi.OpenFlag.PASSTHROUGH, abi.NotifyCode.RESEND) == (128, 7)
    offsets = {field.name: field.offset for field in abi.INIT_OUT.fields}
    assert (offsets["max_stack_depth"], offsets["request_timeout"]) == (36, 40)


def test_every_layout_of_the_module_is_compared() -> None:
    named = {value.name for value in vars(abi).values() if isinstance(value, abi.Layout)}
    assert named == {layout.name for layout in abi.LAYOUTS} and len(named) == 29
