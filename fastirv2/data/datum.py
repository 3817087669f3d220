"""Caffe's `Datum`, the value of every record: the message itself, and a scan that finds the image without copying it."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_FIELD = descriptor_pb2.FieldDescriptorProto
_FIELDS = (
    ("channels", 1, _FIELD.TYPE_INT32),
    ("height", 2, _FIELD.TYPE_INT32),
    ("width", 3, _FIELD.TYPE_INT32),
    ("data", 4, _FIELD.TYPE_BYTES),
    ("label", 5, _FIELD.TYPE_INT32),
    ("float_data", 6, _FIELD.TYPE_FLOAT),
    ("encoded", 7, _FIELD.TYPE_BOOL),
)
_DATA_TAG = bytes([4 << 3 | 2])  # field 4, a length and so many bytes


def _datum_class() -> type[Message]:
    """Return the message class of caffe.proto's Datum, made in a pool of its own so that a caffe_pb2 can live beside it."""
    file = descriptor_pb2.FileDescriptorProto(name="fastirv2_datum.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    for name, number, kind in _FIELDS:
        label = _FIELD.LABEL_REPEATED if name == "float_data" else _FIELD.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


Datum = _datum_class()


class DatumFields(NamedTuple):
    """What a Datum says; the image is `value[offset : offset + length]` of the encoded value."""

    channels: int
    height: int
    width: int
    label: int
    encoded: bool
    offset: int
    length: int


def encode(data: bytes, label: int, height: int, width: int) -> bytes:
    """Return the Datum of an encoded RGB image (`data`: the bytes of its file; `height` and `width` in pixels)."""
    before, after = around(len(data), label, height, width)
    return b"".join((before, data, after))


def around(length: int, label: int, height: int, width: int) -> tuple[bytes, bytes]:
    """Return what comes before and after an encoded RGB image's bytes in its Datum: `length` bytes, sides in pixels.

    The parts of a message are a message each: only the image's own tag and length are not left to protobuf, which would
    copy the image three times.
    """
    before = Datum(channels=3, height=height, width=width).SerializeToString(deterministic=True)
    after = Datum(label=label, encoded=True).SerializeToString(deterministic=True)
    return before + _DATA_TAG + _as_varint(length), after


def scan(value: bytes | memoryview) -> DatumFields:
    """Return the fields of an encoded Datum without copying the image; it takes any writer's order of fields.

    `offset` and `length` are 0 when the Datum holds no `data`. Raises ValueError when `value` is not a whole Datum.
    """
    numbers = {1: 0, 2: 0, 3: 0, 5: 0, 7: 0}
    offset = length = position = 0
    while position < len(value):
        tag, position = _varint(value, position)
        wire = tag & 7
        if wire == 0:
            number, position = _varint(value, position)
            numbers[tag >> 3] = number
            continue
        if wire == 2:
            size, position = _varint(value, position)
            if tag >> 3 == 4:
                offset, length = position, size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"no Datum: wire type {wire} at byte {position}")
        position += size
    if position != len(value):
        raise ValueError(f"no whole Datum: a field ends at byte {position} of {len(value)}")
    return DatumFields(numbers[1], numbers[2], numbers[3], _signed(numbers[5]), bool(numbers[7]), offset, length)


def data_offset(value: bytes | memoryview) -> int:
    """Return where the image's bytes begin inside an encoded Datum; raises ValueError as `scan` does."""
    return scan(value).offset


def _as_varint(number: int) -> bytes:
    """Return a number from 0 up in base 128, as `_varint` reads it."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(0x80 | number & 0x7F)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _varint(value: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return the base-128 number at `position` and the position behind it."""
    number = shift = 0
    while shift < 70 and position < len(value):
        byte = value[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise ValueError(f"no Datum: no number ends at byte {position}")


def _signed(number: int) -> int:
    """Return an int32 field's value: protobuf writes a negative one as its 64-bit two's complement."""
    return number - (1 << 64) if number >> 63 else number
