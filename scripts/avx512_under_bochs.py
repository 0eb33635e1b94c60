"""Runs the Rust tests of the kernels on an emulated processor with AVX-512.

    python scripts/avx512_under_bochs.py [--kernel /boot/vmlinuz-…] [--seconds 3600] [FILTER ...]

qemu emulates no AVX-512, and Bochs does, but whole machines only. So the tests are built as a
static program and put on an image of a CD with a Linux kernel, whose first process runs them: the
machine boots from it, and what is printed arrives over a serial line. It takes some minutes for a
few seconds of work.

Debian: apt install bochs bochsbios vgabios isolinux genisoimage linux-image-cloud-amd64. Nothing of
it needs to be root; the kernel may also be taken out of its package with `dpkg -x`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRIPLE = "x86_64-unknown-linux-gnu"
LOADER = (
    Path("/usr/lib/ISOLINUX/isolinux.bin"),
    Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
)
FILTERS = ["kernels", "low_bit", "correct"]
OVER = "the tests ended with"
INIT = f"""
fn main() {{
    let arguments = std::env::args().skip(1);
    let status = std::process::Command::new("/tests").args(arguments).status();
    println!("{OVER} {{status:?}}");
    loop {{
        std::thread::park();
    }}
}}
"""
"""The first process, which must not end."""

FEATURE = "AVX-512 ZMM_Hi256"
"""What the kernel says when it lets programs have the registers."""

MENU = """DEFAULT tests
PROMPT 0
LABEL tests
  KERNEL /vmlinuz
  APPEND initrd=/initrd.gz {options} -- {arguments}
"""
OPTIONS = (
    "console=ttyS0 loglevel=7 panic=0 nokaslr mitigations=off acpi=off lpj=100000 "
    "random.trust_cpu=on noxsaves clearcpuid=xsaves,xsavec,pku,fsrm,rdpid,umip"
)
"""The last ones, since the sizes that Bochs tells of compacted register areas are not those that
Linux checks for, and with one of fsrm, rdpid and umip on Ice Lake it stops while it starts."""

MACHINE = """plugin_ctrl: serial=1, speaker=0, parallel=0, gameport=0
cpu: model=corei7_icelake_u, ips=50000000, count=1
megs: 1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: rfb, options="timeout=0"
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/serial
clock: sync=none, time0=946681200
sound: driver=dummy
log: {folder}/log
"""


def tests() -> Path:
    """Builds the tests; returns the program."""
    environment = {
        **os.environ,
        "RUSTFLAGS": "-C target-feature=+crt-static",
        "CARGO_PROFILE_TEST_OPT_LEVEL": "3",
        "CARGO_PROFILE_TEST_DEBUG": "0",
    }
    command = ["cargo", "test", "--locked", "--lib", "--no-run", "--target", TRIPLE]
    command += ["--target-dir", "target/avx512", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    messages = map(json.loads, done.stdout.splitlines())
    return Path(next(m["executable"] for m in messages if m.get("executable")))


def entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """A file in the form of cpio that kernels unpack ("newc")."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return _filled(head) + _filled(content)


def _filled(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def first_process(folder: Path) -> Path:
    """Builds it."""
    program = folder / "init"
    command = ["rustc", "-C", "target-feature=+crt-static", "-o", str(program), "-"]
    subprocess.run(command, input=INIT, text=True, check=True)
    return program


def make_image(folder: Path, program: Path, kernel: Path, arguments: list[str]) -> None:
    """Writes `boot.iso`."""
    disc = folder / "disc"
    (disc / "isolinux").mkdir(parents=True)
    for file in LOADER:
        shutil.copy(file, disc / "isolinux")
    (disc / "isolinux" / "isolinux.cfg").write_text(
        MENU.format(options=OPTIONS, arguments=" ".join(arguments))
    )
    shutil.copy(kernel, disc / "vmlinuz")
    files = entry("dev", 0o040755) + entry("dev/console", 0o020600, device=(5, 1))
    files += entry("dev/random", 0o020444, device=(1, 8))
    files += entry("dev/urandom", 0o020444, device=(1, 9))
    files += entry("tmp", 0o040777) + entry("tests", 0o100755, program.read_bytes())
    files += entry("init", 0o100755, first_process(folder).read_bytes())
    files += entry("TRAILER!!!", 0)
    (disc / "initrd.gz").write_bytes(gzip.compress(files, 1))
    command = [
        "genisoimage",
        "-quiet",
        "-o",
        str(folder / "boot.iso"),
        "-b",
        "isolinux/isolinux.bin",
    ]
    command += [
        "-c",
        "isolinux/boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
    ]
    subprocess.run([*command, str(disc)], check=True)


def run(folder: Path, seconds: float) -> str:
    """Boots the machine; returns what it said until the tests were over."""
    (folder / "machine").write_text(MACHINE.format(folder=folder))
    (folder / "commands").write_text("c\n")  # Debian's Bochs is a debugger, which waits for this
    command = ["bochs", "-q", "-f", str(folder / "machine"), "-rc", str(folder / "commands")]
    serial, shown, end = folder / "serial", 0, time.monotonic() + seconds
    with (
        (folder / "output").open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output) as machine,
    ):
        said = ""
        while machine.poll() is None and time.monotonic() < end and OVER not in said:
            time.sleep(2)
            said = serial.read_text(errors="replace") if serial.exists() else ""
            print(said[shown:], end="", flush=True)
            shown = len(said)
        machine.kill()
    return said


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("filters", nargs="*", default=FILTERS, help="which tests")
    kernels = sorted(Path("/boot").glob("vmlinuz-*"))
    parser.add_argument("--kernel", type=Path, default=kernels[-1] if kernels else None)
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args()
    if options.kernel is None:
        parser.error("no kernel in /boot: name one with --kernel")
    program = tests()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--test-threads=1", "--nocapture", *options.filters]
        make_image(Path(folder), program, options.kernel, arguments)
        said = run(Path(folder), options.seconds)
    if FEATURE not in said:
        print("the machine did not get as far as AVX-512", file=sys.stderr)
        return 1
    return "test result: ok" not in said


if __name__ == "__main__":
    sys.exit(main())
