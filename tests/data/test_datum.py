import pytest
from google.protobuf import descriptor_pool

from fastirv2.data.datum import Datum, data_offset, encode, scan


def test_an_encoded_datum_is_read_back_by_protobuf():
    datum = Datum.FromString(encode(b"\xff\xd8 bytes", 999, 480, 640))
    assert (datum.channels, datum.height, datum.width, datum.label, datum.encoded) == (3, 480, 640, 999, True)
    assert datum.data == b"\xff\xd8 bytes"
    assert not datum.float_data


def test_the_message_has_the_names_and_numbers_of_caffe():
    numbers = {field.name: field.number for field in Datum.DESCRIPTOR.fields}
    assert numbers == {"channels": 1, "height": 2, "width": 3, "data": 4, "label": 5, "float_data": 6, "encoded": 7}
    assert Datum.DESCRIPTOR.full_name == "caffe.Datum"
    # proto2, as in caffe.proto: one tag a float
    assert Datum(float_data=[1.0, 2.0]).SerializeToString() == b"\x35\x00\x00\x80\x3f\x35\x00\x00\x00\x40"


def test_the_message_leaves_the_name_free_in_the_default_pool():
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("caffe.Datum")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 2_100_000])
def test_scan_finds_the_image_at_any_size(size):
    data = bytes(range(256)) * (size // 256 + 1)
    value = encode(data[:size], 7, 300, 500)
    fields = scan(value)
    assert value[fields.offset : fields.offset + fields.length] == data[:size]
    assert (fields.height, fields.width, fields.label, fields.encoded, fields.channels) == (300, 500, 7, True, 3)
    assert data_offset(memoryview(value)) == fields.offset


def test_scan_takes_other_writers_orders_and_fields():
    data = Datum(data=b"picture").SerializeToString()
    rest = Datum(label=5, width=9).SerializeToString()
    floats = Datum(float_data=[0.5]).SerializeToString()
    unknown = b"\x79" + bytes(8) + b"\x82\x01\x03abc"
    fields = scan(rest + floats + unknown + data)
    assert (fields.label, fields.width, fields.length) == (5, 9, 7)
    assert not fields.encoded


def test_scan_reads_a_negative_label():
    assert scan(Datum(label=-3).SerializeToString()).label == -3


def test_a_datum_that_is_cut_anywhere_is_refused_or_lacks_a_field():
    value = encode(b"x" * 300, 1, 2, 3)
    whole = scan(value)
    for length in range(len(value)):
        try:
            assert scan(value[:length]) != whole
        except ValueError:
            continue


@pytest.mark.parametrize("value", [b"\x22\x7f123", b"\x0b", b"\xff" * 11, b"\x08"])
def test_what_is_no_datum_is_refused(value):
    with pytest.raises(ValueError, match="Datum"):
        scan(value)
