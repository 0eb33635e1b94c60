"""Which values go from where to where in a module: recorded in one run, or traced.

A value is known by a key; an in-place operation makes a new one of the same tensor. Modules without
children are whole; what else happens to a value happens in functions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from rustq.errors import UnsupportedError

__all__ = ["Call", "Flow", "recorded", "traced"]

RECTIFIERS = (nn.ReLU, nn.ReLU6)
RECTIFYING = {"relu", "relu_", "relu6"}
"""Modules and functions that integers of 0 and more make superfluous."""


@dataclass(frozen=True)
class Call:
    """One call of a module, or, without a name, of a function.

    Attributes:
        module: its name within the whole.
        inputs: the values read.
        output: the value made.
        rectifies: whether it is a ReLU, or a ReLU6.
    """

    module: str
    inputs: tuple[Any, ...]
    output: Any
    rectifies: bool = False


@dataclass
class Flow:
    """All calls, in their order.

    Attributes:
        calls: of modules without children and of functions.
        made_by: for a value, the modules with a forward of their own that hand it out, the
            innermost first.
        results: the values that the whole hands out.
    """

    calls: list[Call] = field(default_factory=list)
    made_by: dict[Any, list[str]] = field(default_factory=lambda: defaultdict(list))
    results: set[Any] = field(default_factory=set)

    def counts(self) -> Counter[str]:
        """How often each module was called."""
        return Counter(call.module for call in self.calls)

    def readers(self, value: Any) -> list[Call]:
        """The calls that read a value; what nothing but the caller reads has none."""
        return [call for call in self.calls if value in call.inputs]

    def sole_reader(self, value: Any) -> Call | None:
        """The one reader of a value, if there is no other and the caller does not see it."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and value not in self.results else None


class _Functions(TorchFunctionMode):  # type: ignore[misc]
    """Notes calls of functions that are in no module without children."""

    def __init__(self, note: Callable[[str, Any, Any], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls, and notes it."""
        before = [_key(value) for value in _tensors((args, kwargs or {}))]
        result = func(*args, **(kwargs or {}))
        self.note(getattr(func, "__name__", ""), before, result)
        return result


def recorded(module: Any, run: Callable[[], Any]) -> Flow:
    """The flow of values while `run` calls the module."""
    flow = Flow()
    kept: list[Any] = []
    inside: list[list[Any]] = []
    handles = []

    def note(name: str, before: list[Any], result: Any) -> None:
        made = _tensors(result)
        kept.extend(made)  # so that no other tensor gets the same address
        if not inside and made and before:
            for each in made:
                if _key(each) not in before:
                    call = Call("", tuple(before), _key(each), name in RECTIFYING)
                    flow.calls.append(call)

    def entered(name: str, whole: bool) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            if whole:
                inside.append([_key(value) for value in _tensors((args, kwargs))])
                kept.extend(_tensors((args, kwargs)))

        return hook

    def left(name: str, whole: bool, rectifies: bool) -> Any:
        def hook(_: Any, args: Any, result: Any) -> None:
            made = _tensors(result)
            if whole:
                inputs = tuple(inside.pop())
                # An Identity, or Dropout in evaluation, hands on what it was given.
                if len(made) == 1 and not inside and _key(made[0]) not in inputs:
                    flow.calls.append(Call(name, inputs, _key(made[0]), rectifies))
            kept.extend(made)
            if isinstance(result, torch.Tensor):
                flow.made_by[_key(result)].append(name)

        return hook

    for name, part in module.named_modules():
        whole = not any(True for _ in part.children())
        enter, leave = entered(name, whole), left(name, whole, isinstance(part, RECTIFIERS))
        handles.append(part.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(part.register_forward_hook(leave))
    try:
        with _Functions(note):
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    flow.results = {_key(value) for value in _tensors(result)}
    return flow


def traced(module: Any) -> Flow:
    """The flow of values as torch.fx finds it, without running anything.

    Raises:
        UnsupportedError: it cannot be traced.
    """
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:  # what a forward does to a tracer may fail in any way
        raise UnsupportedError(
            "torch.fx cannot trace this module, whose calls depend on values: pass calibration"
            f" data, or example_inputs ({type(error).__name__}: {error})"
        ) from error
    flow, modules = Flow(), dict(module.named_modules())
    for node in graph.nodes:
        inputs = tuple(node.all_input_nodes)
        if node.op == "call_module":
            rectifies = isinstance(modules[node.target], RECTIFIERS)
            flow.calls.append(Call(node.target, inputs, node, rectifies))
            flow.made_by[node].append(node.target)
        elif node.op in ("call_function", "call_method"):
            name = node.target if node.op == "call_method" else node.target.__name__
            flow.calls.append(Call("", inputs, node, name in RECTIFYING))
        elif node.op == "output":
            flow.results.update(inputs)
    return flow


def _key(value: Any) -> tuple[int, int]:
    return id(value), value._version


def _tensors(values: Any) -> list[Any]:
    """All tensors in nested containers."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
