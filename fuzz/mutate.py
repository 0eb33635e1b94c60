"""Quantizes mutated models, and looks for anything but a result or an error of one line.

    python fuzz/mutate.py [FILE-OR-FOLDER ...] [--seconds 3600] [--found fuzz/found]

Without files, the models of onnx's own tests and the one of the demo are mutated: bytes are
flipped, cut out, doubled and replaced by extremes, or fields of the message are set to values that
are wrong. Each mutant is loaded, folded, quantized, dynamically and with a calibration of no data,
and written for every target, by a worker process. What counts as found: a crash, an `InternalError`
or an exception that is not documented, a message of several lines, more than 10 seconds of the
processors' time, nothing at all for 10 minutes, or memory above 10 times the file, beyond 256 MiB
that onnx's converter and ONNX Runtime may take for themselves. It is kept in a file, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import rustq
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from rustq import demo

LARGEST = 1 << 20
SECONDS = 10.0
PATIENCE = 600.0
LEAST_MEMORY, FACTOR = 256 << 20, 10
ALL_MEMORY = 8 << 30
"""What a worker may map, so that a mutant that asks for everything does not take it from others."""

EXTREMES = (0, 1, -1, 2, 127, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
WORDS = ("", "x", "Conv", "MatMul", "Slice", "Reshape", "If", "ai.onnx", "\x00", "n" * 100_000)
VARINTS = (
    b"\x00",
    b"\x7f",
    b"\xff" * 9 + b"\x01",
    b"\x80\x80\x80\x80\x10",
    b"\xff\xff\xff\xff\x07",
)


# ---------------------------------------------------------------------- mutating
def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """The mutant of this number."""
    draw = random.Random(number)
    content = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        content = draw.choice(MUTATIONS)(content, draw, seeds)
    return content


def flip(content: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """Another value for one byte."""
    at = draw.randrange(len(content) or 1)
    return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]


def length(content: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """A number that is a lie, most likely a length."""
    at = draw.randrange(len(content) or 1)
    return content[:at] + draw.choice(VARINTS) + content[at + draw.choice((1, 2, 5)) :]


def cut(content: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """Without a piece."""
    start = draw.randrange(len(content) or 1)
    return content[:start] + content[start + draw.choice((1, 2, 3, 10, 1000, len(content))) :]


def double(content: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """A piece twice."""
    start = draw.randrange(len(content) or 1)
    end = start + draw.choice((1, 4, 50, 1000))
    return content[:end] + content[start:]


def splice(content: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """The end of another model."""
    other = draw.choice(seeds)
    return content[: draw.randrange(len(content) or 1)] + other[draw.randrange(len(other) or 1) :]


def change_fields(content: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """A few fields set to something else, in a message that stays one."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's errors have no public class
        return content
    for _ in range(draw.choice((1, 2, 5))):
        change(walk(model, draw), draw)
    try:
        return model.SerializeToString()
    except Exception:
        return content


def walk(message: Message, draw: random.Random) -> Message:
    """Some message within a message."""
    while draw.random() < 0.85:
        inner = [
            one
            for field, value in message.ListFields()
            if field.type == FieldDescriptor.TYPE_MESSAGE
            for one in (value if field.is_repeated else [value])
        ]
        if not inner:
            break
        message = draw.choice(inner)
    return message


def change(message: Message, draw: random.Random) -> None:
    """Another value in one of the fields, or none, or a message once more."""
    fields = [field for field, _ in message.ListFields()] if draw.random() < 0.7 else []
    field = draw.choice(fields or message.DESCRIPTOR.fields)
    if draw.random() < 0.15:
        message.ClearField(field.name)
        return
    values = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if not field.is_repeated:
            values.SetInParent()
        elif values and draw.random() < 0.6:
            values.add().CopyFrom(draw.choice(values))
        elif values:
            del values[draw.randrange(len(values))]
        else:
            values.add()
        return
    value = wrong(field, values if field.is_repeated else None, draw)
    try:
        if not field.is_repeated:
            setattr(message, field.name, value)
        elif values and draw.random() < 0.7:
            values[draw.randrange(len(values))] = value
        else:
            values.append(value)
    except (TypeError, ValueError):  # out of the field's range
        return


def wrong(field: FieldDescriptor, others: Any, draw: random.Random) -> Any:
    """Some value for a field of this type."""
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw.choice([entry.number for entry in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw.choice(WORDS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw.choice((b"", b"x", bytes(7), b"\xff" * 64))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return draw.choice((0.0, -1.0, 1e38, float("inf"), float("nan")))
    if others and draw.random() < 0.3:
        return draw.choice(others)
    return draw.choice((*EXTREMES, draw.randrange(32)))


Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
MUTATIONS: tuple[Mutation, ...] = (
    *(flip, length, cut, double, splice),
    *(change_fields,) * 8,
)


# ---------------------------------------------------------------------- what must hold
DOCUMENTED = (rustq.ModelError, rustq.DataError, rustq.UnsupportedError)
INT4, FLOAT16 = rustq.QuantConfig(weights="int4"), rustq.QuantConfig(weights="float16")
VERBS: tuple[Callable[[bytes], Any], ...] = (
    lambda content: rustq.load(content).to_bytes(),
    rustq.fold,
    rustq.quantize,
    lambda content: rustq.quantize(content, config=INT4),
    lambda content: rustq.quantize(content, rustq.Calibration()),
    lambda content: rustq.quantize(content, rustq.Calibration(), target="tensorrt"),
    lambda content: rustq.quantize(content, rustq.Calibration(), target="ascend"),
    lambda content: rustq.quantize(content, target="ncnn"),
    lambda content: rustq.quantize(content, target="ncnn", config=FLOAT16),
)


def complaint(content: bytes) -> str:
    """What is wrong with what rustq does to a model; empty if nothing is."""
    start = time.process_time()
    before = reset_peak()
    for number, verb in enumerate(VERBS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verb(content)
        except DOCUMENTED as error:
            if "\n" in str(error) or not str(error):
                return f"step {number}: a message that is not one line: {error!r}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"step {number}: {type(error).__name__}: {error}"
    seconds = time.process_time() - start
    if seconds > SECONDS:
        return f"{seconds:.1f} s"
    memory = peak() - before
    if memory > LEAST_MEMORY + FACTOR * len(content):
        return f"{memory >> 20} MiB for {len(content)} bytes"
    return ""


def peak() -> int:
    """The most memory that this process had since `reset_peak`, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def reset_peak() -> int:
    """Forgets the most memory until now; returns what there is."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 1 << 62
    return peak()


def processor_time(pid: int) -> float:
    """Seconds that a process has computed; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------- workers
def work(seeds: Sequence[bytes], first: int, step: int) -> None:
    """Tries mutants for ever, telling each number before, and the complaint after it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ALL_MEMORY, ALL_MEMORY))
    complaint(demo.model_path().read_bytes())  # which imports onnx and ONNX Runtime
    number = first
    while True:
        print(f"try {number}", flush=True)
        if found := complaint(mutated(seeds, number)):
            print(f"found {' '.join(found.split())}", flush=True)
        number += step


def hunt(sources: Sequence[str], seconds: float, first: int) -> Iterator[tuple[int, str]]:
    """Lets workers try mutants for so long; each number, and what was found."""
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end:
        command = [sys.executable, __file__, *sources, "--worker", str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as worker:
            assert worker.stdout is not None
            asked, used = time.monotonic(), processor_time(worker.pid)
            while time.monotonic() < end:
                if not select.select([worker.stdout], [], [], SECONDS)[0]:
                    # That the machine does other things is no fault of the mutant.
                    if (
                        time.monotonic() - asked < PATIENCE
                        and processor_time(worker.pid) - used < 3 * SECONDS
                    ):
                        continue
                    yield number, "it hangs"
                    break
                asked, used = time.monotonic(), processor_time(worker.pid)
                word, _, rest = worker.stdout.readline().partition(" ")
                if not word:
                    yield number, f"the process ended with {worker.wait()}"
                    break
                if word == "try":
                    number = int(rest)
                    yield number, ""
                else:
                    yield number, rest.strip()
            worker.kill()
        number += 1


def seeds_in(sources: Sequence[str]) -> list[bytes]:
    """The models to mutate."""
    tests = Path(onnx.__file__).parent / "backend" / "test" / "data"
    paths = [Path(source) for source in sources] or [tests, demo.model_path()]
    files = [file for path in paths for file in (sorted(path.rglob("*.onnx")) or [path])]
    contents = [file.read_bytes() for file in files if file.stat().st_size <= LARGEST]
    return sorted(set(contents), key=lambda content: hashlib.sha256(content).digest())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--found", type=Path, default=Path(__file__).with_name("found"))
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seeds = seeds_in(options.sources)
    if options.worker is not None:
        work(seeds, options.worker, 1)
    tried = found = 0
    for number, what in hunt(options.sources, options.seconds, options.first):
        tried += not what
        if what:
            found += 1
            options.found.mkdir(parents=True, exist_ok=True)
            (options.found / f"{number}.onnx").write_bytes(mutated(seeds, number))
            print(f"{number}: {what}", flush=True)
    print(f"{tried} mutants of {len(seeds)} models, {found} found")
    return found > 0


if __name__ == "__main__":
    sys.exit(main())
