"""What the protobuf library lacks: Structs of any values, numbers within bounds, partial copies, messages made of bytes."""
