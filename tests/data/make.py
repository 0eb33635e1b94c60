"""Makes the models of this folder: one small network with pairs by each of several tools.

    python tests/data/make.py [NAME ...]

Needs torch, onnxscript and onnxruntime, and for each name its tool:

| name | made by |
| --- | --- |
| `onnxruntime` | onnxruntime 1.32, `quantize_static`, uint8 activations, int8 weights per channel |
| `torch_fake` | torch 2.15, `torch.ao.quantization` FakeQuantize in eager mode, exported by TorchScript |
| `torchao_pt2e` | torchao, `prepare_qat_pt2e` with the X86 quantizer, exported by torch's dynamo exporter |
| `brevitas` | brevitas, 8-bit weights in a narrow range and 4-bit activations, `export_onnx_qcdq` |
| `modelopt` | nvidia-modelopt, `INT8_DEFAULT_CFG`, pairs in front of the products |
| `tfmot` | tensorflow-model-optimization `quantize_model` with tf-keras, and tf2onnx |
| `rustq` | `rustq.torch.prepare_qat`, 8 bits |

The weights are those of a fixed seed, trained for an epoch on nothing in particular: what counts is how the pairs are
written. Versions are in the metadata of each file, under `made by`.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx

FOLDER = Path(__file__).parent
SAMPLES = np.random.default_rng(0).uniform(0, 1, (64, 1, 8, 8)).astype(np.float32)


def _net(torch):
    torch.manual_seed(0)
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.middle = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.last = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
            self.relu = nn.ReLU()
            self.pool = nn.MaxPool2d(2)
            self.head = nn.Linear(256, 10)

        def forward(self, x):
            y = self.stem(x)
            y = self.relu(self.last(self.middle(y)) + y)
            return self.head(torch.flatten(self.pool(y), 1))

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(5):  # so that the normalizations have statistics
        optimizer.zero_grad()
        scores = net(torch.from_numpy(SAMPLES))
        torch.nn.functional.cross_entropy(scores, torch.arange(64) % 10).backward()
        optimizer.step()
    return net.eval()


def _export(torch, net, dynamo, **more):
    x = torch.from_numpy(SAMPLES[:2])
    if dynamo:
        program = torch.onnx.export(
            net,
            (x,),
            dynamo=True,
            input_names=["x"],
            dynamic_shapes=({0: "n"},),
            optimize=False,
            verbose=False,
            **more,
        )
        return program.model_proto
    buffer = io.BytesIO()
    torch.onnx.export(
        net,
        (x,),
        buffer,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
        opset_version=17,
        **more,
    )
    return onnx.load_model_from_string(buffer.getvalue())


def of_onnxruntime():
    import torch
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{"x": SAMPLES}])

        def get_next(self):
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("float.onnx", "folded.onnx", "qdq.onnx")]
        onnx.save(_export(torch, _net(torch), False), paths[0])
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        quantize_static(
            paths[1],
            paths[2],
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(paths[2]), "onnxruntime"


def of_torch_fake():
    import torch
    import torch.ao.quantization as q

    class Wrapped(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.quant, self.net, self.add = (
                q.QuantStub(),
                net,
                torch.ao.nn.quantized.FloatFunctional(),
            )

        def forward(self, x):
            net = self.net
            y = net.stem(self.quant(x))
            y = self.add.add_relu(net.last(net.middle(y)), y)
            return net.head(torch.flatten(net.pool(y), 1))

    net = Wrapped(_net(torch))
    net.eval()
    net = q.fuse_modules(
        net,
        [
            [f"net.{part}.{i}" for i in range(n)]
            for part, n in (("stem", 3), ("middle", 3), ("last", 2))
        ],
    )
    act = q.FakeQuantize.with_args(
        observer=q.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    weight = q.FakeQuantize.with_args(
        observer=q.PerChannelMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    net.train()
    net.qconfig = q.QConfig(activation=act, weight=weight)
    q.prepare_qat(net, inplace=True)
    net(torch.from_numpy(SAMPLES))
    net.eval()
    net.apply(q.disable_observer)
    return _export(torch, net, False), "torch"


def of_torchao_pt2e():
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    x = torch.from_numpy(SAMPLES[:2])
    program = torch.export.export(
        _net(torch), (x,), dynamic_shapes=({0: torch.export.Dim("n")},)
    ).module()
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config()
    )
    prepared = prepare_pt2e(program, quantizer)
    prepared(torch.from_numpy(SAMPLES))
    return _export(torch, convert_pt2e(prepared), True), "torchao"


def of_brevitas():
    import brevitas.nn as qnn
    import torch
    from brevitas.export import export_onnx_qcdq
    from brevitas.quant import (
        Int8ActPerTensorFloat,
        Int8WeightPerChannelFloat,
        Uint8ActPerTensorFloat,
    )

    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            conv = {"weight_quant": Int8WeightPerChannelFloat}
            self.quant = qnn.QuantIdentity(
                act_quant=Int8ActPerTensorFloat, return_quant_tensor=True
            )
            self.a = qnn.QuantConv2d(1, 16, 3, padding=1, **conv)
            self.b = qnn.QuantConv2d(16, 16, 3, padding=1, groups=16, **conv)
            self.c = qnn.QuantConv2d(16, 16, 1, **conv)
            self.relus = nn.ModuleList(
                qnn.QuantReLU(
                    act_quant=Uint8ActPerTensorFloat, bit_width=bits, return_quant_tensor=True
                )
                for bits in (8, 4, 8)
            )
            self.head = qnn.QuantLinear(256, 10, True, **conv)

        def forward(self, x):
            y = self.relus[0](self.a(self.quant(x)))
            y = self.relus[2](self.c(self.relus[1](self.b(y))))
            return self.head(torch.flatten(nn.functional.max_pool2d(y, 2), 1))

    torch.manual_seed(0)
    net = Net()
    net.train()
    for _ in range(3):
        net(torch.from_numpy(SAMPLES))
    net.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "net.onnx"))
        export_onnx_qcdq(
            net,
            torch.from_numpy(SAMPLES[:2]),
            export_path=path,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
            dynamo=False,
        )
        return onnx.load(path), "brevitas"


def of_modelopt():
    import modelopt.torch.quantization as mtq
    import torch

    net = mtq.quantize(
        _net(torch), mtq.INT8_DEFAULT_CFG, lambda net: net(torch.from_numpy(SAMPLES))
    )
    return _export(torch, net, False, do_constant_folding=False), "nvidia-modelopt"


def of_tfmot():
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf2onnx
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [
            layers.Input((8, 8, 1), name="x"),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 1),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    quantized = tfmot.quantization.keras.quantize_model(net)
    quantized.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = SAMPLES.transpose(0, 2, 3, 1)
    quantized.fit(x, np.arange(64) % 10, epochs=3, verbose=0)
    signature = (tf.TensorSpec((None, 8, 8, 1), tf.float32, "x"),)
    proto, _ = tf2onnx.convert.from_keras(quantized, signature, opset=17)
    return proto, "tensorflow-model-optimization"


def of_rustq():
    import rustq.torch
    import torch

    net = rustq.torch.prepare_qat(_net(torch), [SAMPLES])
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(rustq.torch.export(net, Path(folder, "net.onnx"))), "rustq"


def main() -> None:
    """Command line."""
    warnings.simplefilter("ignore")
    makers = {name[3:]: value for name, value in globals().items() if name.startswith("of_")}
    for name in sys.argv[1:] or makers:
        proto, package = makers[name]()
        version = (
            __import__(package).__version__
            if package == "rustq"
            else importlib.metadata.version(package)
        )
        del proto.metadata_props[:], proto.graph.value_info[:], proto.graph.metadata_props[:]
        for node in proto.graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        onnx.helper.set_model_props(proto, {"made by": f"{package} {version}"})
        path = FOLDER / f"{name}.onnx"
        onnx.save(proto, path)
        print(path, path.stat().st_size, package, version)


if __name__ == "__main__":
    main()
