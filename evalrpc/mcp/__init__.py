"""Tools for agents, over the Model Context Protocol: a program on standard input and output that is a client of a server."""
