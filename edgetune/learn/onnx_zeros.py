"""Sums with zeros taken out of an ONNX graph: what removed branches leave behind, which the runtime would compute."""

from __future__ import annotations

from typing import Any

_KEEP_ZERO = {"Relu", "Identity", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Dropout"}


def without_zero_sums(graph: bytes) -> bytes:
    """
    Hand the other operand of each addition of zeros on, and drop what nothing needs any more.

    Args:
        graph: an ONNX model of one graph without subgraphs.

    Returns:
        The model; the bytes as given where it adds no zeros.
    """
    import onnx

    model = onnx.load_from_string(graph)
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    }
    nodes = list(model.graph.node)
    zeros: set[str] = set()
    instead: dict[str, str] = {}
    for node in nodes:  # in topological order
        node.input[:] = [instead.get(name, name) for name in node.input]
        if _is_zeros(node) or (node.op_type in _KEEP_ZERO and zeros.issuperset(node.input)):
            zeros.update(node.output)
        elif node.op_type == "Add" and zeros.intersection(node.input):
            first, second = node.input
            other = second if first in zeros else first
            if other in shapes and shapes[other] == shapes.get(node.output[0]):  # the zeros may have spread it out
                instead[node.output[0]] = other
    if not instead:
        return graph
    outputs = {value.name for value in model.graph.output}
    kept = [node for node in nodes if not instead.keys() & set(node.output) or outputs & set(node.output)]
    needed = set(outputs)
    for node in reversed(kept):
        if needed.intersection(node.output):
            needed.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(node for node in kept if needed.intersection(node.output))
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in needed]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    return bytes(model.SerializeToString())


def _is_zeros(node: Any) -> bool:
    """A ConstantOfShape gives zeros unless it says otherwise."""
    import onnx

    if node.op_type != "ConstantOfShape":
        return False
    return not any(onnx.numpy_helper.to_array(attribute.t).any() for attribute in node.attribute)
