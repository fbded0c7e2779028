"""Runs the toy harness, which is compiled once as a module, and not at each start as a program."""

import toy_harness

toy_harness.main()
