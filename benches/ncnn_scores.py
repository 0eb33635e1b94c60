"""The models of the zoo in ncnn: float against ONNX Runtime, and the task scores of int8.

    python benches/ncnn_scores.py                     # the six image models
    python benches/ncnn_scores.py mnist_cnn --layers  # with the report of each layer
    python benches/ncnn_scores.py --noise-price 0 1 3 10

For every case: the error of the float export relative to the largest output of ONNX Runtime, the
median of the samples and the worst of them; the scores in float and int8 and the points
(hundredths) lost, the layers and the multiply-accumulates in int8, and the size of the int8 files
relative to the float ones. ncnn runs in processes of its own. Prints markdown on standard output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import rustq
import zoo
from markdown import table

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from ncnn_runtime import Case, run

CASES = ("mobilenet_v2", "efficientnet_lite0", "ppocr_cls", "ppocr_rec", "yolox_char", "mnist_cnn")
SAMPLES = 64
HEADER = (
    "case",
    "float error",
    "float score",
    "price",
    "int8 score",
    "loss",
    "SQNR dB",
    "int8 layers",
    "MACs",
    "size",
)


class Exported:
    """A case of the zoo, and its exports."""

    def __init__(self, case: zoo.Case, folder: Path, samples: int | None = None) -> None:
        self.case, self.folder = case, folder
        # ncnn runs one sample at a time.
        self.feeds = [
            {name: array[i : i + 1] for name, array in feed.items()}
            for feed in case.evaluation
            for i in range(len(next(iter(feed.values()))))
        ][:samples]
        self.outputs = [value.name for value in rustq.load(case.model).outputs]
        shapes = {name: (1, *array.shape[1:]) for name, array in case.calibration[0].items()}
        self.shapes = shapes

    def export(self, name: str, **choices: object) -> rustq.QuantizedModel:
        """Writes the files for these choices of QuantConfig."""
        config = rustq.QuantConfig(input_shapes=self.shapes, **choices)
        # Samples, not the calibration: settings are tried on them.
        data = self.case.calibration[:SAMPLES]
        result = rustq.quantize(self.case.model, data, target="ncnn", config=config)
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
            if samples := list(islice(rest, size)):
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


def errors(expected: list[zoo.Outputs], found: list[zoo.Outputs]) -> list[float]:
    """For each sample the largest error relative to the largest value of its output."""
    pairs = [
        (e, g.reshape(e.shape))
        for es, gs in zip(expected, found, strict=True)
        for outputs in zip(es, gs, strict=True)
        for e, g in zip(*outputs, strict=True)
    ]
    return [float(np.abs(e - g).max() / np.abs(e).max()) for e, g in pairs]


def measure(
    case: zoo.Case, folder: Path, prices: list[float | None], method: str, layers: bool
) -> Iterator[list[str]]:
    """The lines of the table for one case."""
    exported = Exported(case, folder)
    exported.export("float", weights="float32")
    in_float = exported.run("float")
    off, score = errors(case.run(), in_float), case.score(in_float)
    for price in prices:
        report = exported.export("int8", method=method, noise_price=price).report
        in_int8 = exported.run("int8")
        if layers:
            print(report, file=sys.stderr)
        heavy = [layer for layer in report.layers if layer.macs]
        sizes = [(folder / f"{name}.bin").stat().st_size for name in ("float", "int8")]
        found = case.score(in_int8)
        yield [
            case.name,
            f"{np.median(off):.1e}, {max(off):.1e}",
            f"{score:.4f}",
            "default" if price is None else f"{price:g}",
            f"{found:.4f}",
            f"{100 * (score - found):.2f}",
            f"{sqnr(in_float, in_int8):.1f}",
            f"{sum(layer.quantized for layer in heavy)}/{len(heavy)}",
            f"{report.mac_share() or 0:.0%}",
            f"{sizes[1] / sizes[0]:.0%}",
        ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}")
    parser.add_argument("--layers", action="store_true", help="show the report of each layer")
    parser.add_argument("--method", default="auto", help="calibration method")
    parser.add_argument(
        "--noise-price", type=float, nargs="+", default=[None], help="see QuantConfig"
    )
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    store, rows = zoo.Store(options.cache), []
    chosen = options.noise_price, options.method, options.layers
    for name in options.cases or CASES:
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(zoo.load(name, store), Path(folder), *chosen)
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
