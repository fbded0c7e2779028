"""The ways into the server. Each gives the handlers a Call, and their answers and errors to its client."""
