"""What fastirv2-build-lmdb is made of: sources, images, writer, check."""
