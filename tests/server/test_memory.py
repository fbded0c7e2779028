"""Memory that is needed no more is given back to the machine."""

import subprocess
import sys

import pytest

from evalrpc.server import memory

PROGRAM = """
import threading
from pathlib import Path
from evalrpc.server.memory import Memory, limit_arenas

class Node:
    pass

def rss_kib():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))

def work():
    texts = [bytes([1]) * 4000 for _ in range(25_000)]
    cycle = Node()
    cycle.itself, cycle.texts = cycle, texts[::2]
    del texts
    kept.append(bytes([2]) * 4000)  # it lies above all that is freed

limit_arenas()
kept = []
before = rss_kib()
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
full = rss_kib()
Memory().give_back()
print(before, full, rss_kib())
"""


def test_what_was_freed_and_what_is_garbage_is_given_back() -> None:
    if memory._from_c("malloc_trim") is None:
        pytest.skip("this C library is not glibc")
    output = subprocess.run((sys.executable, "-c", PROGRAM), capture_output=True, check=True, text=True).stdout
    before, full, after = map(int, output.split())
    assert full > before + 50_000, "there was nothing to give back"
    assert after < before + 10_000


def test_only_a_server_that_has_grown_since_it_was_smallest_collects_all_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 90, 98, 95, 100, 80, 89, 85])  # before and after each
    collections: list[int] = []
    monkeypatch.setattr(memory, "resident_bytes", lambda _: next(sizes))
    monkeypatch.setattr(memory.gc, "collect", collections.append)
    kept = memory.Memory()
    for _ in range(4):
        kept.give_back()
    assert collections == [2, 1, 2, 2]


LARGE_BLOCKS = """
import ctypes
from evalrpc.server.memory import limit_arenas

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena free fast maps mapped other_ free_fast used unused top".split()]

limit_arenas()
count = ctypes.CDLL(None).mallinfo2
count.restype = Counts
large = bytearray(20 << 20)
del large  # from then on glibc by itself takes what is smaller from its heaps
before = count().mapped
smaller = bytearray(8 << 20)
print(count().mapped - before)
"""


def test_large_blocks_stay_apart_from_the_heaps() -> None:
    if memory._from_c("mallinfo2") is None:
        pytest.skip("this C library is not glibc, or an old one")
    output = subprocess.run((sys.executable, "-c", LARGE_BLOCKS), capture_output=True, check=True, text=True).stdout
    assert int(output) >= 8 << 20
