"""Reading and writing of the record store: datum, LMDB file, records, order, augmentation, loader."""
