"""What the protobuf library lacks: Structs of any values, numbers within bounds, messages assembled from bytes."""
