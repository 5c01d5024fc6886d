"""What model.onnx stores, tensor by tensor, without loading its weights."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import load_external_data_for_tensor

ROTARY_CACHE = re.compile(r"(^|[._/])((cos|sin)_cache|attn\.embed_positions)")
"""Tables of cosines and sines by position: computed from config.json, no weights of the checkpoint."""

ZERO_POINT_INPUT = {"MatMulNBits": 3, "GatherBlockQuantized": 3, "MatMulInteger": 3}


@dataclass(frozen=True, slots=True)
class Stored:
    """One initializer."""

    proto: Any
    folder: Path
    zero_points: bool
    embedding: bool
    """Read by a look-up, in float: an input embedding that was not quantized."""

    @property
    def name(self) -> str:
        """Name in the graph."""
        return str(self.proto.name)

    @property
    def packed(self) -> bool:
        """True for integers that stand for weights; a byte holds one or two."""
        return not np.issubdtype(self._dtype, np.floating)

    @property
    def bytes(self) -> int:
        """Bytes in the file: two 4-bit integers share one."""
        for entry in self.proto.external_data:
            if entry.key == "length":
                return int(entry.value)
        return int(onnx.numpy_helper.to_array(self.proto).nbytes)

    @property
    def _dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(self.proto.data_type)
        return dtype

    def read(self) -> npt.NDArray[Any]:
        """Load this tensor alone."""
        loaded = onnx.TensorProto()
        loaded.CopyFrom(self.proto)
        if onnx.external_data_helper.uses_external_data(loaded):
            load_external_data_for_tensor(loaded, str(self.folder))
        values: npt.NDArray[Any] = onnx.numpy_helper.to_array(loaded)
        return values


def weights(folder: Path) -> Iterator[Stored]:
    """Yield what stands for the checkpoint's weights: everything stored but rotary caches and shape constants."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    zero_points = {
        node.input[ZERO_POINT_INPUT[node.op_type]]
        for node in graph.node
        if len(node.input) > ZERO_POINT_INPUT.get(node.op_type, len(node.input))
    }
    embeddings = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    for proto in graph.initializer:
        shape_constant = proto.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
        if not shape_constant and not ROTARY_CACHE.search(proto.name):
            yield Stored(proto, folder, proto.name in zero_points, proto.name in embeddings)
