"""DALI graphs and nothing else: decode, resize, crop, mirror; and the constants that their output is normalised with."""

UNIT_MEAN = 127.5  # uint8 → [-1, 1]: (x − 127.5) / 127.5, as TensorFlow-slim scales its input
UNIT_STD = 127.5
