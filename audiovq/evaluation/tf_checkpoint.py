"""Float tensors out of a TensorFlow checkpoint ("tensor bundle"), without TensorFlow.

`.index` is a LevelDB table (github.com/google/leveldb, doc/table_format.md) of protocol buffers (BundleEntryProto,
tensorflow/core/protobuf/tensor_bundle.proto), each of which says where in `.data-00000-of-00001` a tensor lies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

FLOAT = 1  # DT_FLOAT in tensorflow/core/framework/types.proto
FOOTER_BYTES = 48
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_checkpoint(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """Every float32 tensor by name, from the content of the two files."""
    footer = index[-FOOTER_BYTES:]
    _, position = _varint(footer, 0)  # the metaindex block's offset and size: not needed
    _, position = _varint(footer, position)
    tensors = {}
    for _, handle in _table_block(index, footer, position):
        for name, entry in _table_block(index, handle, 0):
            fields = dict(_fields(entry))
            if not name or fields.get(1) != FLOAT:
                continue
            shape = [dict(_fields(size)).get(1, 0) for number, size in _fields(fields.get(2, b"")) if number == 2]
            offset, n_bytes = fields.get(4, 0), fields.get(5, 0)
            tensors[name.decode()] = np.frombuffer(data[offset : offset + n_bytes], "<f4").reshape(shape).copy()
    return tensors


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first; and the position behind it."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _table_block(table: bytes, handle: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block that a handle (offset and size, at `position`) points to."""
    offset, position = _varint(handle, position)
    size, _ = _varint(handle, position)
    assert table[offset + size] == 0, "compressed tables are not read here"
    block = table[offset : offset + size]
    (n_restarts,) = struct.unpack("<I", block[-4:])
    end, position, key = len(block) - 4 * (n_restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)  # bytes of the key that are those of the key before
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + own]
        position += own + length
        yield key, block[position - length : position]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values (int or bytes) of a protocol buffer's fields."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == BYTES:
            length, position = _varint(message, position)
        else:
            length = {FIXED64: 8, FIXED32: 4}[kind]
        yield tag >> 3, message[position : position + length]
        position += length
