"""One quantization tool on one model, in the tool's own environment: `peers.py` runs this file.

    python peer_tools.py TOOL SETTING MODEL FEEDS OUTPUT

FEEDS is a folder of `.npz` files in order, one feed each. Every tool is given the same model, which
`variants.prepare` has brought to an operator set that all of them take. Nothing of rustq is needed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feed = dict[str, np.ndarray]
HEAVY = ["Conv", "Gemm", "MatMul"]


class Reader:
    """Feeds as the tools made from onnxruntime's quantizer read them."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self.rest: Iterator[Feed] = iter(self.feeds)

    def get_next(self) -> Feed | None:
        """The next feed, `None` after the last."""
        return next(self.rest, None)

    def get_first(self) -> Feed:
        """The first feed."""
        return self.feeds[0]

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


def onnxruntime(model: Path, feeds: list[Feed], output: Path, **setting: Any) -> None:
    """onnxruntime.quantization.quantize_static, QDQ."""
    from onnxruntime import quantization as ort

    class Feeds(Reader, ort.CalibrationDataReader):  # type: ignore[misc]
        pass

    options = {
        "activation_type": ort.QuantType.QUInt8,
        "weight_type": ort.QuantType.QUInt8
        if setting.pop("unsigned", False)
        else ort.QuantType.QInt8,
        "calibrate_method": ort.CalibrationMethod[setting.pop("method", "MinMax")],
    }
    ort.quantize_static(str(model), str(output), Feeds(feeds), **options, **setting)


def onnxsim(model: Path, feeds: list[Feed], output: Path, **setting: Any) -> None:
    """onnxsim.simplify, then onnxsim.quantize_static."""
    import onnxsim as tool

    simplified, _ = tool.simplify(onnx.load(model))
    onnx.save(tool.quantize_static(simplified, feeds, **setting), output)


def nncf(model: Path, feeds: list[Feed], output: Path, **setting: Any) -> None:
    """nncf.quantize on the ONNX backend."""
    import nncf as tool

    if "preset" in setting:
        setting["preset"] = tool.QuantizationPreset(setting["preset"])
    if setting.pop("transformer", False):
        setting["model_type"] = tool.ModelType.TRANSFORMER
    if "smooth_quant" in setting:
        alpha = setting.pop("smooth_quant")
        setting["advanced_parameters"] = tool.AdvancedQuantizationParameters(
            smooth_quant_alphas=tool.AdvancedSmoothQuantParameters(matmul=alpha, convolution=-1)
        )
    quantized = tool.quantize(onnx.load(model), tool.Dataset(feeds), **setting)
    onnx.save(quantized, output)


def quark(model: Path, feeds: list[Feed], output: Path, **setting: Any) -> None:
    """quark.onnx.ModelQuantizer: uint8 activations, int8 weights per channel."""
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import QConfig, algorithm
    from quark.onnx.quantization.config import spec as specs

    method = specs.CalibMethod[setting.pop("method", "Percentile")]
    config = QConfig(
        global_config=specs.QLayerConfig(
            activation=specs.UInt8Spec(calibration_method=method),
            weight=specs.Int8Spec(
                calibration_method=specs.CalibMethod.MinMax,
                quant_granularity=specs.QuantGranularity.Channel,
            ),
        ),
        algo_config=[getattr(algorithm, name)() for name in setting.pop("algorithms", ())],
    )
    ModelQuantizer(config).quantize_model(str(model), str(output), Reader(feeds))


def modelopt(model: Path, feeds: list[Feed], output: Path, **setting: Any) -> None:
    """modelopt.onnx.quantization.quantize, kept in float32 where it is not int8."""
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    class Feeds(Reader, CalibrationDataReader):  # type: ignore[misc]
        pass

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data_reader=Feeds(feeds),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(output),
        **setting,
    )


def aimet(model: Path, feeds: list[Feed], output: Path, **setting: Any) -> None:
    """aimet_onnx.QuantizationSimModel, exported as QDQ."""
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
    from aimet_onnx.cross_layer_equalization import equalize_model

    loaded = onnx.load(model)
    if setting.pop("equalize", False):
        equalize_model(loaded)
    simulated = QuantizationSimModel(
        loaded,
        config_file=get_path_for_per_channel_config(),
        providers=["CPUExecutionProvider"],
        **setting,
    )
    simulated.compute_encodings(feeds)
    onnx.save(simulated.to_onnx_qdq(), output)


TOOLS: dict[str, Callable[..., None]] = {
    tool.__name__: tool for tool in (onnxruntime, onnxsim, nncf, quark, modelopt, aimet)
}

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "onnxruntime": {
        "per tensor": {},
        "per channel": {"per_channel": True},
        "per channel, 7 bit": {"per_channel": True, "reduce_range": True},
        "per channel, u8 weights": {"per_channel": True, "unsigned": True},
        "per channel, heavy": {"per_channel": True, "op_types_to_quantize": HEAVY},
        "per channel, heavy, 7 bit": {
            "per_channel": True,
            "reduce_range": True,
            "op_types_to_quantize": HEAVY,
        },
        "per channel, heavy, percentile": {
            "per_channel": True,
            "op_types_to_quantize": HEAVY,
            "method": "Percentile",
            "extra_options": {"CalibPercentile": 99.99},
        },
    },
    "onnxsim": {
        "minmax": {},
        "percentile": {"method": "percentile", "percentile": 99.99},
        "mse": {"method": "mse"},
        "auto": {"method": "auto"},
    },
    "nncf": {
        "default": {},
        "mixed": {"preset": "mixed"},
        "mixed, full bias correction": {"preset": "mixed", "fast_bias_correction": False},
        "transformer": {"transformer": True},
        "transformer, SmoothQuant 0.5": {"transformer": True, "smooth_quant": 0.5},
    },
    "quark": {
        "percentile": {},
        "min-max": {"method": "MinMax"},
        "min-max, equalized": {"method": "MinMax", "algorithms": ("CLEConfig",)},
        "percentile, equalized, bias correction": {
            "algorithms": ("CLEConfig", "BiasCorrectionConfig"),
        },
    },
    "modelopt": {
        "entropy": {},
        "max": {"calibration_method": "max"},
    },
    "aimet": {
        "min-max": {"quant_scheme": "min_max"},
        "SQNR": {"quant_scheme": "tf_enhanced"},
        "SQNR, equalized": {"quant_scheme": "tf_enhanced", "equalize": True},
    },
}
"""The settings of each tool that are tried, by the name they have in the table."""


def main() -> None:
    """Run one tool."""
    tool, setting, model, folder, output = sys.argv[1:]
    logging.getLogger().setLevel(logging.ERROR)
    feeds = [dict(np.load(path)) for path in sorted(Path(folder).glob("*.npz"))]
    TOOLS[tool](Path(model), feeds, Path(output), **dict(SETTINGS[tool][setting]))


if __name__ == "__main__":
    main()
