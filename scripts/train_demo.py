"""Train the digit classifier that ships in `rustq.demo` and write its model and data files.

    pip install jax optax scikit-learn onnx onnxruntime    # and rustq itself, for `prepare`
    python scripts/train_demo.py                           # about two minutes on two CPU cores

Writes python/rustq/demo/digits.onnx and digits.npz. Everything is seeded: on one machine, with the
same packages, two runs write the same bytes. `NETWORK` is the only description of the network;
`forward` trains it and `to_onnx` writes it. The last weights are kept, whatever their accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import optax
from jax import Array
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rustq.demo import INPUT, prepare
from sklearn.datasets import load_digits

Params = dict[str, dict[str, Array]]
Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

DATA = "UCI Optical Recognition of Handwritten Digits, CC BY 4.0"
SEED = 0
CALIBRATION, TEST = 96, 600  # images set apart; the other 1101 train
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 30, 64, 3e-3, 1e-2
SHIFT = 2  # augmentation: move by up to this many pixels of 16
EPSILON, MOMENTUM = 1e-5, 0.9  # of batch normalization
CLASSES = 10


@dataclass(frozen=True)
class Block:
    """Conv without bias → BatchNormalization → Add of block `add`, if any → activation, if any."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    add: str | None = None
    activation: str | None = "Relu"


NETWORK = (
    Block("stem", 1, 32, kernel=3),
    Block("wide", 32, 64, kernel=3),
    Block("expand", 64, 128, activation="Relu6"),  # an inverted residual, as in MobileNetV2
    Block("depthwise", 128, 128, kernel=3, depthwise=True, activation="Relu6"),
    Block("project", 128, 64, add="wide", activation=None),
    Block("down", 64, 64, kernel=3, stride=2, depthwise=True),
    Block("squeeze", 64, 32),  # a bottleneck, as in ResNet
    Block("middle", 32, 32, kernel=3),
    Block("unsqueeze", 32, 64, add="down"),
    Block("features", 64, 128),
)
HEAD = "classifier"  # GlobalAveragePool → Gemm


def initial() -> tuple[Params, Params]:
    """Return the parameters (weights in HWIO order) and running statistics to start from."""
    rng = np.random.default_rng(SEED)
    params: Params = {}
    stats: Params = {}
    for b in NETWORK:
        shape = (b.kernel, b.kernel, 1 if b.depthwise else b.inputs, b.outputs)
        weight = rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
        zeros, ones = jnp.zeros(b.outputs), jnp.ones(b.outputs)
        params[b.name] = {"weight": jnp.asarray(weight, jnp.float32), "scale": ones, "bias": zeros}
        stats[b.name] = {"mean": zeros, "var": ones}
    weight = rng.normal(0, np.sqrt(1 / NETWORK[-1].outputs), (NETWORK[-1].outputs, CLASSES))
    params[HEAD] = {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.zeros(CLASSES)}
    return params, stats


def convolve(x: Array, weight: Array, b: Block) -> Array:
    """Return the convolution of NHWC images; depthwise as shifted sums, which XLA runs faster."""
    pad = (b.kernel // 2, b.kernel // 2)
    if not b.depthwise:
        layout = ("NHWC", "HWIO", "NHWC")
        strides, pads = (b.stride, b.stride), (pad, pad)
        return jax.lax.conv_general_dilated(x, weight, strides, pads, dimension_numbers=layout)
    size, padded = x.shape[1], jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    out = jnp.zeros(())
    for i, j in np.ndindex(b.kernel, b.kernel):
        out += padded[:, i : i + size : b.stride, j : j + size : b.stride] * weight[i, j, 0]
    return out


def forward(params: Params, stats: Params, x: Array, train: bool) -> tuple[Array, Params]:
    """Return the scores of NHWC images and, when training, the updated running statistics."""
    done: dict[str, Array] = {}
    updated: Params = {}
    for b in NETWORK:
        p, s = params[b.name], stats[b.name]
        x = convolve(x, p["weight"], b)
        if train:
            batch = {"mean": x.mean(axis=(0, 1, 2)), "var": x.var(axis=(0, 1, 2))}
            updated[b.name] = {k: MOMENTUM * s[k] + (1 - MOMENTUM) * batch[k] for k in s}
            s = batch
        x = (x - s["mean"]) * jax.lax.rsqrt(s["var"] + EPSILON) * p["scale"] + p["bias"]
        if b.add:
            x = x + done[b.add]
        if b.activation:
            x = jnp.clip(x, 0, 6 if b.activation == "Relu6" else None)
        done[b.name] = x
    return x.mean(axis=(1, 2)) @ params[HEAD]["weight"] + params[HEAD]["bias"], updated


def batches(images: Floats, labels: Labels) -> Iterator[tuple[Floats, Labels]]:
    """Yield all epochs of shuffled batches of NHWC images, each moved by up to `SHIFT` pixels."""
    rng = np.random.default_rng(SEED)
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            corners = rng.integers(0, 2 * SHIFT + 1, (BATCH, 2))
            pairs = zip(chosen, corners, strict=True)
            moved = [padded[i, r : r + size, c : c + size] for i, (r, c) in pairs]
            yield np.stack(moved), labels[chosen]


def train(images: Floats, labels: Labels) -> tuple[Params, Params]:
    """Return the trained parameters and the running statistics of batch normalization."""
    params, stats = initial()
    steps = EPOCHS * (len(images) // BATCH)
    schedule = optax.cosine_onecycle_schedule(steps, LEARNING_RATE)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    state = optimizer.init(params)

    def loss(params: Params, stats: Params, x: Array, y: Array) -> tuple[Array, Params]:
        scores, stats = forward(params, stats, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean(), stats

    @jax.jit
    def step(params: Params, stats: Params, state: Any, x: Array, y: Array) -> tuple[Any, ...]:
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats, x, y)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    for i, (x, y) in enumerate(batches(images, labels), 1):
        params, stats, state, value = step(params, stats, state, jnp.asarray(x), jnp.asarray(y))
        if i % (steps // 10) == 0:
            print(f"step {i:4d} of {steps}: training loss {value:.4f}", flush=True)
    return params, stats


def to_onnx(params: Params, stats: Params, metadata: dict[str, str]) -> onnx.ModelProto:
    """Return the network as an ONNX model, opset 17, BatchNormalization left unfolded."""
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def constant(name: str, array: Array) -> str:
        initializers.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    x, done = INPUT, dict[str, str]()
    clip = [constant("relu6_min", jnp.array(0.0)), constant("relu6_max", jnp.array(6.0))]
    for b in NETWORK:
        p = params[b.name] | stats[b.name]
        weight = constant(f"{b.name}.weight", jnp.transpose(p["weight"], (3, 2, 0, 1)))
        window: dict[str, Any] = {"kernel_shape": [b.kernel] * 2, "strides": [b.stride] * 2}
        window |= {"pads": [b.kernel // 2] * 4, "group": b.inputs if b.depthwise else 1}
        x = node("Conv", f"{b.name}_conv", [x, weight], **window)
        norm = [constant(f"{b.name}.{k}", p[k]) for k in ("scale", "bias", "mean", "var")]
        x = node("BatchNormalization", f"{b.name}_bn", [x, *norm], epsilon=EPSILON)
        if b.add:
            x = node("Add", f"{b.name}_add", [x, done[b.add]])
        if b.activation == "Relu6":
            x = node("Clip", f"{b.name}_relu6", [x, *clip])
        elif b.activation:
            x = node(b.activation, f"{b.name}_relu", [x])
        done[b.name] = x
    x = node("Flatten", "flatten", [node("GlobalAveragePool", "pool", [x])])
    head = params[HEAD]["weight"].T, params[HEAD]["bias"]
    weights = [constant(f"{HEAD}.weight", head[0]), constant(f"{HEAD}.bias", head[1])]
    node("Gemm", HEAD, [x, *weights], transB=1)
    nodes[-1].output[0] = "scores"

    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 1, 16, 16])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "digits", [image], [scores], initializers)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model.producer_name = Path(__file__).name
    helper.set_model_props(model, metadata)
    return model


def main() -> None:
    """Split the data, train, check the export against the training forward, write both files."""
    package = Path(__file__).parents[1] / "python" / "rustq" / "demo"
    parser = argparse.ArgumentParser(description="Train the demo model of rustq.")
    parser.add_argument("--out", type=Path, default=package, help="folder for both files")
    out: Path = parser.parse_args().out

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    order = np.random.default_rng(SEED).permutation(len(images)).astype(np.uint16)
    calibration, test, training = np.split(order, [CALIBRATION, CALIBRATION + TEST])
    apart = {"calibration": calibration, "test": test}  # what ships: the training images do not

    params, stats = train(prepare(images[training]).transpose(0, 2, 3, 1), labels[training])

    x = prepare(images[test])
    infer = jax.jit(partial(forward, train=False))
    expected = np.asarray(infer(params, stats, jnp.asarray(x.transpose(0, 2, 3, 1)))[0])
    accuracy = float(np.mean(expected.argmax(axis=1) == labels[test]))
    model = to_onnx(params, stats, {"data": DATA, "test_accuracy": f"{accuracy:.4f}"})
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    difference = float(np.abs(np.asarray(session.run(None, {INPUT: x})[0]) - expected).max())
    if difference > 1e-3:
        raise SystemExit(f"the exported model differs from the trained one by {difference:.2g}")

    out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / "digits.onnx")
    arrays: dict[str, Any] = {"test_labels": labels[test]}
    for name, indices in apart.items():
        arrays |= {f"{name}_images": images[indices], f"{name}_indices": indices}
    np.savez_compressed(out / "digits.npz", **arrays)
    print(f"test accuracy {accuracy:.2%}, ONNX Runtime differs by at most {difference:.1e}")
    for name in ("digits.onnx", "digits.npz"):
        print(f"{out / name}: {(out / name).stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
