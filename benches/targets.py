"""What the files for TensorRT and Ascend compute, in place of the devices.

    python benches/targets.py                         # every case with an image network
    python benches/targets.py mobilenet_v2 --cache …

For TensorRT the file of pairs is run by ONNX Runtime without any optimization, so that it computes
what the pairs say; for Ascend it is the arithmetic that the record describes, simulated by
tests/ascend_simulation.py. Prints score and loss in points (hundredths), output SQNR, the share of
multiply-accumulates in int8, and, where requirements-tensorrt.txt is installed, what NVIDIA's
builder says of the file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import onnx
import rustq
import tensorrt_build
import zoo
from accuracy import sqnr
from markdown import table

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from ascend_simulation import read_record, simulated

CASES = ("mobilenet_v2", "efficientnet_lite0", "ppocr_cls", "ppocr_rec", "yolox_char", "mnist_cnn")
SAMPLES = 64
HEADER = ("case", "for", "score", "loss", "SQNR dB", "int8 MACs", "NVIDIA's builder")


def literal(case: zoo.Case, model: Path) -> list[zoo.Outputs]:
    """The outputs for all evaluation inputs, every node computed as it stands."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in case.evaluation]


def share(report: rustq.Report) -> float:
    """Of the multiply-accumulates that are known, those in int8."""
    known = [(layer.macs, layer.quantized) for layer in report.layers if layer.macs]
    return sum(macs for macs, quantized in known if quantized) / sum(macs for macs, _ in known)


def rows(case: zoo.Case, folder: Path) -> Iterator[tuple[str, ...]]:
    """The lines of the table for one case."""
    reference = case.run()
    score = case.score(reference)
    yield case.name, "float", f"{score:.4f}", "", "", "", ""
    for target in ("tensorrt", "ascend"):
        print(f"{case.name}: {target}", file=sys.stderr, flush=True)
        result = rustq.quantize(case.model, case.calibration[:SAMPLES], target=target)
        path, beside = result.save(folder / f"{case.name}.{target}.onnx")[:2]
        built = ""
        if target == "ascend":
            deployed = simulated(onnx.load(path), read_record(beside.read_text("utf-8")))
            onnx.save(deployed, path)
        elif find_spec("tensorrt_rtx"):
            sizes = {name: list(array.shape) for name, array in case.evaluation[0].items()}
            profile = {name: [[1, *size[1:]], size, size] for name, size in sizes.items()}
            built = str(tensorrt_build.build(path, profile))
        outputs = literal(case, path)
        found = case.score(outputs)
        quality = f"{100 * (score - found):.2f}", f"{sqnr(reference, outputs):.1f}"
        yield case.name, target, f"{found:.4f}", *quality, f"{share(result.report):.0%}", built


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    store, lines = zoo.Store(options.cache), []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.cases or CASES:
            lines += rows(zoo.load(name, store), Path(scratch))
    print(table(HEADER, lines, names=2))


if __name__ == "__main__":
    main()
