"""The gRPC server: handlers, validation, retention and wiring."""
