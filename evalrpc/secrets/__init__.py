"""Secrets of the operator's: read when a run starts, handed to it as environment variables, and masked in what it prints.

A value is only ever in memory, in the environment of the run, and in the message to the process that starts it. It is never
stored, and no message of an error has one.
"""
