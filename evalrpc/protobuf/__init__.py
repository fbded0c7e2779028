"""Protobuf messages beyond what its library does: Structs of any values, numbers within bounds, fields joined as bytes."""
