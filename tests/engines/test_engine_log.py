"""The log of an engine is cut to its end."""

from pathlib import Path

from evalrpc.engines.engine_log import bound_log


def test_of_a_log_that_is_too_large_the_last_lines_are_kept_and_what_the_engine_prints_next(tmp_path: Path) -> None:
    log = tmp_path / "engines" / "engine" / "start-1" / "log"
    log.parent.mkdir(parents=True)
    with log.open("ab") as engine:
        engine.write(b"".join(b"line %d\n" % number for number in range(1000)))
        engine.flush()
        size = log.stat().st_size
        bound_log(log, 0)
        bound_log(log, size)
        assert log.stat().st_size == size
        bound_log(log, 1000)
        engine.write(b"next\n")
    first, *others = log.read_text().splitlines()
    assert f"{size - sum(len(line) + 1 for line in others[:-1])} bytes were dropped," in first
    assert others[-2:] == ["line 999", "next"]
    assert len(others) > 50
    bound_log(log.with_name("none"), 1)
