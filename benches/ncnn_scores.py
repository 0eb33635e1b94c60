"""The models of the zoo in ncnn: float against ONNX Runtime, and the task scores of int8.

    python benches/ncnn_scores.py                     # the six image models
    python benches/ncnn_scores.py mnist_cnn --layers  # with the report of each layer

For every case: the largest error of the float export relative to the largest output of ONNX
Runtime, the scores in float and int8 and the points (hundredths) lost, the layers in int8, and the
size of the int8 files relative to the float ones. ncnn runs in processes of its own. Prints
markdown on standard output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import rustq
import zoo
from markdown import table

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from ncnn_runtime import Case, run

CASES = ("mobilenet_v2", "efficientnet_lite0", "ppocr_cls", "ppocr_rec", "yolox_char", "mnist_cnn")
HEADER = (
    "case",
    "float error",
    "float score",
    "int8 score",
    "loss",
    "SQNR dB",
    "int8 layers",
    "size",
)


class Exported:
    """A case of the zoo, and its exports."""

    def __init__(self, case: zoo.Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        # ncnn runs one sample at a time.
        self.feeds = [
            {name: array[i : i + 1] for name, array in feed.items()}
            for feed in case.evaluation
            for i in range(len(next(iter(feed.values()))))
        ]
        self.outputs = [value.name for value in rustq.load(case.model).outputs]
        self.calibration = rustq.calibrate(case.model, case.calibration)
        shapes = {name: (1, *array.shape[1:]) for name, array in case.calibration[0].items()}
        self.shapes = shapes

    def export(self, name: str, **choices: object) -> rustq.QuantizedModel:
        """Writes the files for these choices of QuantConfig."""
        config = rustq.QuantConfig(input_shapes=self.shapes, **choices)
        result = rustq.quantize(self.case.model, self.calibration, target="ncnn", config=config)
        result.save(self.folder / f"{name}.param")
        return result

    def run(self, name: str) -> list[zoo.Outputs]:
        """What ncnn computes, with a batch axis, in the batches of the case."""
        feeds = [{key: array[0] for key, array in feed.items()} for feed in self.feeds]
        found = run([Case(self.folder / f"{name}.param", feeds, self.outputs)])[0]
        return self._batches(found)

    def _batches(self, results: list[zoo.Outputs]) -> list[zoo.Outputs]:
        batches, rest = [], iter(results)
        for feed in self.case.evaluation:
            size = len(next(iter(feed.values())))
            samples = [next(rest) for _ in range(size)]
            batches.append([np.stack(arrays) for arrays in zip(*samples, strict=True)])
        return batches


def sqnr(expected: list[zoo.Outputs], found: list[zoo.Outputs]) -> float:
    """Signal to noise over all outputs, in dB."""
    signal = noise = 0.0
    for wanted, got in zip(expected, found, strict=True):
        for e, g in zip(wanted, got, strict=True):
            signal += float(np.sum(e.astype(np.float64) ** 2))
            noise += float(np.sum((e.astype(np.float64) - g) ** 2))
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


def worst(expected: list[zoo.Outputs], found: list[zoo.Outputs]) -> float:
    """The largest error relative to the largest value of its output."""
    pairs = [
        (e, g.reshape(e.shape))
        for es, gs in zip(expected, found, strict=True)
        for e, g in zip(es, gs, strict=True)
    ]
    return max(float(np.abs(e - g).max() / np.abs(e).max()) for e, g in pairs)


def measure(case: zoo.Case, folder: Path, layers: bool, choices: dict[str, object]) -> list[str]:
    """The cells of HEADER."""
    exported = Exported(case, folder)
    reference = case.run()
    exported.export("float", weights="float32")
    in_float = exported.run("float")
    report = exported.export("int8", **choices).report
    in_int8 = exported.run("int8")
    scores = [case.score(outputs) for outputs in (in_float, in_int8)]
    heavy = [layer for layer in report.layers if layer.macs]
    if layers:
        for layer in report.layers:
            print(
                layer.name,
                layer.op_type,
                layer.quantized,
                layer.weight_sqnr_db,
                layer.activation_sqnr_db,
                layer.reason,
                file=sys.stderr,
            )
    sizes = [(folder / f"{name}.bin").stat().st_size for name in ("float", "int8")]
    return [
        case.name,
        f"{worst(reference, in_float):.1e}",
        f"{scores[0]:.4f}",
        f"{scores[1]:.4f}",
        f"{100 * (scores[0] - scores[1]):.2f}",
        f"{sqnr(in_float, in_int8):.1f}",
        f"{sum(layer.quantized for layer in heavy)}/{len(heavy)}",
        f"{100 * sizes[1] / sizes[0]:.0f} %",
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}")
    parser.add_argument("--layers", action="store_true", help="show the report of each layer")
    parser.add_argument("--method", default="auto", help="calibration method")
    parser.add_argument("--noise-price", type=float, help="see QuantConfig")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    store, rows = zoo.Store(options.cache), []
    choices = {"method": options.method, "noise_price": options.noise_price}
    for name in options.cases or CASES:
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(zoo.load(name, store), Path(folder), options.layers, choices))
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
