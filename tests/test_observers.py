"""The ways to observe activations count the same numbers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from builders import Net
from onnx import TensorProto, helper
from rustq import QuantConfig, _rustq, runner
from rustq.model import core_of
from rustq.preparing import prepare

WAYS = runner.Observation.WAYS
Feed = dict[str, np.ndarray[Any, Any]]


def observation(model: onnx.ModelProto, way: str, **more: Any) -> runner.Observation:
    prepared, *_ = prepare(core_of(model))
    return runner.Observation(prepared, QuantConfig(**{"threads": 1} | more), (way,))


def observed(
    model: onnx.ModelProto, way: str, feeds: Sequence[Feed], **more: Any
) -> _rustq.Calibration:
    calibration = _rustq.Calibration()
    made = observation(model, way, **more)
    assert made.way == way
    made.run(feeds, calibration)
    return calibration


def feeds_of(model: onnx.ModelProto, count: int = 3, **sizes: int) -> list[Feed]:
    """Random feeds; named dimensions are as in `sizes`, or 2."""
    random = np.random.default_rng(7)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds = []
    for _ in range(count):
        feed = {}
        for value in model.graph.input:
            if value.name in constants:
                continue
            tensor = value.type.tensor_type
            shape = [d.dim_value or sizes.get(d.dim_param, 2) for d in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            drawn = random.normal(size=shape) if dtype.kind == "f" else random.integers(0, 2, shape)
            feed[value.name] = np.asarray(drawn, dtype)
        feeds.append(feed)
    return feeds


def padded(channels: int = 24, activation: str = "Sigmoid", **dims: Any) -> onnx.ModelProto:
    """Convolutions whose number of channels does not fill the blocks, with padding that is not 0."""
    net = Net()
    x = net.input("image", dims.get("batch", 1), 3, 20, 20)
    x = net.op(activation, net.conv(x, 3, 16))
    y = net.op(activation, net.conv(x, 16, channels))
    z = net.conv(y, channels, channels)
    y = net.op("Add", y, z)
    y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.op(activation, net.conv(y, channels, 16)))


def without_samples() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", "batch", 8)
    return net.model(net.op("Relu", net.linear(net.op("Relu", net.linear(x, 8, 16)), 16, 4)))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    **zoo.USUAL,
    "constant_nodes": zoo.constant_nodes,
    "initializers_as_inputs": zoo.initializers_as_inputs,
    "shared_weights": zoo.shared_weights,
    "dead_channels": zoo.dead_channels,
    "nameless": zoo.nameless,
    "taken_names": zoo.taken_names,
    "float16": zoo.of_type(np.float16),
    "float64": zoo.of_type(np.float64),
    **{f"padded_{n}": lambda n=n: padded(n) for n in (8, 20, 24, 30, 48, 49)},
    **{f"random_{n}": lambda n=n: zoo.random_network(n) for n in range(8)},
}


def ways_of(model: onnx.ModelProto) -> list[str]:
    prepared, *_ = prepare(core_of(model))
    wanted, operators = bool(prepared.values_to_observe()), prepared.op_counts
    possible = runner._possible(QuantConfig(), wanted, operators, WAYS)
    if "blocks" in possible:
        try:
            observation(model, "blocks")
        except (rustq.UnsupportedError, rustq.ModelError):  # nothing in blocks, or a subgraph
            possible.remove("blocks")
    return possible


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("threads", [1, 2])
def test_same_counts(name: str, threads: int) -> None:
    model = NETS[name]()
    feeds = feeds_of(model)
    expected = observed(model, "outputs", feeds, threads=threads)
    assert expected.runs == len(feeds)
    for way in ways_of(model):
        found = observed(model, way, feeds, threads=threads)
        assert found.tensors == expected.tensors
        assert found == expected, way
        assert found.to_bytes() == expected.to_bytes()


def test_the_nets_are_observed_in_every_way() -> None:
    ways = [way for make in NETS.values() for way in ways_of(make())]
    assert ways.count("nodes") > 20
    assert ways.count("blocks") > 15


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_element_types(dtype: Any, threads: int) -> None:
    """Halves and doubles are counted as the floats nearest to them."""
    net = Net()
    x = net.input("x", "n", "m", dtype=dtype)
    model = _rustq.Model.from_bytes(net.model(net.op("Identity", x)).SerializeToString())
    observers = _rustq.Observers(["x"], 1, threads)
    serialized = observers.inserted(model).to_bytes()
    session = runner._session(serialized, runner._options(threads, observing=True))
    values = np.random.default_rng(3).normal(size=(3, 60_001)) * 100
    values[:, ::3] = 0
    values[0, :3] = (1e-40, -1e-40, -0.0)
    found, expected = _rustq.Calibration(), _rustq.Calibration()
    for row in np.asarray(values, dtype)[:, None]:
        session.run(None, {"x": row})
        expected.observe(["x"], [np.asarray(row, np.float32)])
    found.collect(observers, 3)
    assert found == expected


@pytest.mark.parametrize("way", WAYS)
def test_ragged_batches(way: str) -> None:
    """Large enough to be shared between threads, and of different sizes."""
    model = padded(24, batch="batch")
    feeds = [feeds_of(model, 1, batch=batch)[0] for batch in (1, 5, 2)]
    parts = [feeds_of(model, 1, batch=batch)[0] for batch in (2, 1, 5)]
    expected = observed(model, "outputs", feeds, threads=1)
    assert observed(model, way, feeds, threads=2) == expected
    assert observed(model, way, parts, threads=None) == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2])
def test_channels(way: str, threads: int) -> None:
    """Extremes along an axis, against numpy on the outputs; the rest is as without them."""
    model = padded(24, batch="batch")
    feeds = feeds_of(model, 3, batch=3)
    prepared, *_ = prepare(core_of(model))
    values = prepared.values_to_observe()
    axes = {name: (1, -1)[number % 2] for number, name in enumerate(values) if number % 3}
    made = runner.Observation(prepared, QuantConfig(threads=threads), (way,), axes)
    found = _rustq.Calibration(prepared)
    made.run(feeds, found)
    outputs = runner.session(prepared.with_outputs(list(axes)).to_bytes(), threads=1)
    names = [output.name for output in outputs.get_outputs()]
    runs = [dict(zip(names, outputs.run(None, feed), strict=True)) for feed in feeds]
    for name, axis in axes.items():
        whole = np.concatenate([run[name] for run in runs])
        others = tuple(n for n in range(whole.ndim) if n != axis % whole.ndim)
        asked, low, high = found.channels(name) or (0, [], [])
        assert asked == axis
        np.testing.assert_array_equal(low, whole.min(others))
        np.testing.assert_array_equal(high, whole.max(others))
        assert (min(low), max(high)) == (whole.min(), whole.max())
    assert _rustq.Calibration.from_bytes(found.to_bytes()) == found
    plain = _rustq.Calibration(prepared)
    runner.Observation(prepared, QuantConfig(threads=threads), (way,)).run(feeds, plain)
    assert plain.channels(names[0]) is None
    assert plain != found
    with pytest.raises(rustq.DataError, match="only one of the two has channels"):
        plain.merged(found)
    wrong = runner.Observation(prepared, QuantConfig(threads=threads), (way,), {names[0]: 4})
    with pytest.raises(rustq.DataError, match="has no axis 4"):
        wrong.run(feeds, _rustq.Calibration())


@pytest.mark.parametrize("way", ["outputs", "nodes"])
def test_tensors_without_values(way: str) -> None:
    model = without_samples()
    feeds = [{"x": np.ones((n, 8), np.float32)} for n in (0, 3, 0)]
    found = observed(model, way, feeds)
    assert found == observed(model, "outputs", feeds)
    nothing = observed(model, way, feeds[:1])
    assert nothing == observed(model, "outputs", feeds[:1])
    assert nothing.tensors


@pytest.mark.parametrize("way", WAYS)
def test_not_finite_values_are_named(way: str) -> None:
    model = zoo.classifier()
    feeds = feeds_of(model)
    expected = None
    for bad in (np.nan, np.inf, -np.inf):
        feeds[1]["image"][0, 0, 0, 0] = bad
        messages = []
        for each in ("outputs", way):
            with pytest.raises(rustq.DataError) as error:
                observed(model, each, feeds).check_finite()
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        expected = messages[0]
    assert expected is not None
    assert "in tensor '" in expected


@pytest.mark.parametrize("way", WAYS)
def test_a_feed_that_does_not_fit(way: str) -> None:
    feeds = feeds_of(zoo.classifier())
    feeds[2] = {"image": np.zeros((1, 4, 32, 32), np.float32)}
    with pytest.raises(rustq.DataError, match="sample 2"):
        observed(zoo.classifier(), way, feeds)


def test_one_session_on_several_threads() -> None:
    model = zoo.classifier()
    feeds = feeds_of(model, 12)
    made = observation(model, "nodes", threads=2)

    def run(share: list[Feed]) -> None:
        for feed in share:
            made._run(feed)

    threads = [threading.Thread(target=run, args=(feeds[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calibration = _rustq.Calibration()
    assert made._observers is not None
    calibration.collect(made._observers, len(feeds))
    assert calibration == observed(model, "outputs", feeds)


def test_sessions_at_the_same_time_count_apart() -> None:
    models = [zoo.classifier(), zoo.mobile()]
    made = [observation(model, "nodes") for model in models]
    found = [_rustq.Calibration() for _ in models]
    for each, model, calibration in zip(made, models, found, strict=True):
        each.run(feeds_of(model), calibration)
    for model, calibration in zip(models, found, strict=True):
        assert calibration == observed(model, "outputs", feeds_of(model))


def test_a_second_run_starts_at_nothing() -> None:
    model = zoo.classifier()
    made = observation(model, "nodes")
    for _ in range(2):
        calibration = _rustq.Calibration()
        made.run(feeds_of(model), calibration)
        assert calibration == observed(model, "outputs", feeds_of(model))


def test_a_session_keeps_its_counters() -> None:
    made = observation(zoo.classifier(), "nodes")
    made._observers = None
    gc.collect()
    made._run(feeds_of(zoo.classifier())[0])


def test_observers_that_are_gone_are_an_error() -> None:
    prepared, *_ = prepare(core_of(zoo.classifier()))
    serialized = _rustq.Observers(prepared.values_to_observe(), 1, 1).inserted(prepared).to_bytes()
    gc.collect()
    with pytest.raises(rustq.ModelError, match="observers are gone"):
        runner._session(serialized, runner._options(1, observing=True))


@pytest.mark.parametrize("broken", ["register", "nodes"])
def test_falls_back(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that does not take the library, or the edited model, still calibrates."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    if broken == "register":
        options = runner._options
        monkeypatch.setattr(
            runner,
            "_options",
            lambda *n, observing=False: refuse() if observing else options(*n),
        )
    else:
        for way in ("blocks", "nodes"):
            monkeypatch.setattr(runner.Observation, f"_with_{way}", refuse)
    prepared, *_ = prepare(core_of(zoo.classifier()))
    made = runner.Observation(prepared, QuantConfig(threads=1))
    assert made.way == "outputs"
    calibration = _rustq.Calibration()
    made.run(feeds_of(zoo.classifier()), calibration)
    assert calibration == observed(zoo.classifier(), "outputs", feeds_of(zoo.classifier()))


def test_ways_that_are_taken() -> None:
    def way(model: onnx.ModelProto, **more: Any) -> str:
        prepared, *_ = prepare(core_of(model))
        return runner.Observation(prepared, QuantConfig(**more)).way

    assert way(zoo.classifier()) == "blocks"
    assert way(zoo.classifier(), providers="CPUExecutionProvider") == "blocks"
    assert way(zoo.classifier(), session_options={"inter_op_num_threads": 1}) == "nodes"
    assert way(zoo.transformer()) == "nodes"
    net = Net()
    nothing = net.model(net.op("Sin", net.input("x", 2)))
    assert way(nothing) == "outputs"


@pytest.mark.parametrize(("version", "first"), [("1.18.1", "outputs"), ("1.20.0", "blocks")])
def test_old_runtimes_get_outputs(
    version: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", version)
    assert runner._possible(QuantConfig(), True, ("Conv",), WAYS)[0] == first


def test_other_providers_get_outputs() -> None:
    config = QuantConfig(providers=("AnotherProvider", "CPUExecutionProvider"))
    possible = runner._possible(config, True, ("Conv",), WAYS)
    assert possible == ["outputs"]


def test_integers_are_not_observed() -> None:
    net = Net()
    x = net.input("x", 4, dtype=np.int64)
    model = net.model(net.op("Cast", x, to=TensorProto.FLOAT))
    observers = _rustq.Observers(["x"], 1, 1)
    serialized = observers.inserted(_rustq.Model.from_bytes(model.SerializeToString())).to_bytes()
    session = runner._session(serialized, runner._options(1, observing=True))
    session.run(None, {"x": np.arange(4)})
    calibration = _rustq.Calibration()
    calibration.collect(observers, 1)
    assert (calibration.runs, calibration.tensors) == (1, [])


def test_memory_does_not_grow() -> None:
    resource = pytest.importorskip("resource")
    made = observation(zoo.classifier(), "nodes")
    feeds = feeds_of(zoo.classifier(), 2)
    made.run(feeds * 20, _rustq.Calibration())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made.run(feeds * 200, _rustq.Calibration())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10


# ---------------------------------------------------------------------- what else can run the model
def numpy_runner(model: bytes, outputs: Sequence[str]) -> Callable[[Feed], Any]:
    """A runner of a user's: here onnx's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))
    return lambda feed: evaluator.run(list(outputs), feed)


def dict_runner(model: bytes, outputs: Sequence[str]) -> Callable[[Feed], Any]:
    made = runner.session(model, threads=1)
    assert [output.name for output in made.get_outputs()] == list(outputs)
    return lambda feed: dict(zip(outputs, made.run(None, feed), strict=True))


def test_a_runner_of_the_users() -> None:
    model = zoo.classifier()
    feeds = feeds_of(model)
    expected = rustq.calibrate(model, feeds, config=QuantConfig(threads=1))
    assert rustq.calibrate(model, feeds, config=QuantConfig(runner=dict_runner)) == expected
    other = rustq.calibrate(model, feeds, config=QuantConfig(runner=numpy_runner))
    assert other.tensors == expected.tensors
    for tensor in expected.tensors:
        np.testing.assert_allclose(
            other.range(tensor, "minmax"), expected.range(tensor, "minmax"), rtol=1e-4, atol=1e-5
        )
    with ProcessPoolExecutor(1) as executor:
        config = QuantConfig(runner=dict_runner)
        assert rustq.calibrate(model, feeds, config=config, executor=executor) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda _: [], r"returned 0 values for \d+ outputs"),
        (lambda _: {}, "returned no value for output 'image'"),
        (lambda _: 1 / 0, "the runner cannot run sample 0: division by zero"),
    ],
)
def test_a_runner_that_fails(values: Any, message: str) -> None:
    model = zoo.classifier()
    config = QuantConfig(runner=lambda model, outputs: values)
    with pytest.raises(rustq.DataError, match=message):
        rustq.calibrate(model, feeds_of(model), config=config)


def test_providers_and_session_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    made: list[tuple[Any, Any]] = []
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any, providers: Any) -> Any:
        made.append((options, providers))
        return real(model, options, providers=providers)

    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    model = zoo.classifier()
    feeds = feeds_of(model)
    config = QuantConfig(
        providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})],
        session_options={
            "inter_op_num_threads": 2,
            "session.intra_op.allow_spinning": "0",
            "graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        },
        threads=1,
    )
    calibration = rustq.calibrate(model, feeds, config=config)
    (options, providers) = made[-1]
    assert (options.inter_op_num_threads, options.intra_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert providers[0][0] == "CPUExecutionProvider"
    inside = QuantConfig(session_options=config.session_options, threads=1)
    assert rustq.calibrate(model, feeds, config=inside) == calibration
    with pytest.raises(ValueError, match="has no 'inter_op_threads'"):
        rustq.calibrate(model, feeds, config=QuantConfig(session_options={"inter_op_threads": 2}))
