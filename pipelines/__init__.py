"""DALI graphs and nothing else: decode, resize, crop, mirror, colours; and what their output is normalised with."""

UNIT_MEAN = 127.5  # uint8 → [-1, 1]: (x − 127.5) / 127.5, as TensorFlow-slim scales its input
UNIT_STD = 127.5
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # of red, green, blue, as fb.resnet.torch has them
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
