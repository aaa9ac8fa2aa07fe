"""Writes a graph as an ONNX file, as small as it can be without a loss."""

import importlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TRY_OTHERS = "try other versions of onnxscript and onnxruntime"  # advice
Inputs = dict[str, Tensor]  # examples, by name
LEAST_HALVED, HIGHEST_HALF = 256, 65504  # numbers in a tensor; the largest in half precision


def times(factor: int, n: Any) -> Any:
    """A dimension that is a multiple of another one."""
    return factor * n if factor > 1 else n


def write_graph(
    path: Path, graph: nn.Module, inputs: Inputs, shapes: Any, outputs: list[str], facts: Any, int8: bool = False
) -> Any:
    """Write a graph as an ONNX file, which says `facts` about itself as JSON, and load it with onnxruntime.
    `shapes` say which dimensions are free, see `torch.export.export`. With `int8` the file
    has 8-bit weights, and what is loaded is the graph before they were rounded."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        names = {"input_names": list(inputs), "output_names": outputs}
        options = {"dynamic_shapes": shapes, "dynamo": True, "verbose": False, **names}
        program = torch.onnx.export(graph.eval(), tuple(inputs.values()), **options)
    assert program is not None, "with dynamo=True and without a file, torch returns the program"
    program.model.metadata_props["audiovq"] = json.dumps(facts, ensure_ascii=False)
    onnx, runtime = map(importlib.import_module, ("onnx", "onnxruntime"))  # not at the top: they take a second to load
    model = program.model_proto
    if not int8:
        _store_halves(onnx, model.graph)
    del model.graph.value_info[:]  # shapes that onnxruntime finds itself
    for node in model.graph.node:  # where in the source code it comes from: more bytes than the small weights
        del node.metadata_props[:]
    if int8:
        quantization = importlib.import_module("onnxruntime.quantization")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it asks for a preparation that changes nothing here
        try:
            quantization.quantize_dynamic(model, path, weight_type=quantization.QuantType.QInt8)
        finally:
            logging.disable(before)
        return runtime.InferenceSession(model.SerializeToString())
    onnx.save(model, str(path))
    return runtime.InferenceSession(str(path))


def _store_halves(onnx: Any, graph: Any) -> None:
    """Store weights that are half-precision numbers as such, in half the bytes; they are used in float32."""
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LEAST_HALVED or np.abs(values).max() > HIGHEST_HALF:
            continue
        halves, name = values.astype(np.float16), tensor.name
        if (halves == values).all():
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
