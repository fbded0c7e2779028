"""An engine of a test, and a harness that asks it, on a server's site."""

import json
import sys
from pathlib import Path

from processes_of_tests import kill_all
from serving import Site

from evalrpc.executors.local.processes import processes_of_job


def add_engine(site: Site) -> None:
    """Configure the engine `stub`, and the harness `asking`, which asks as many questions as its task says."""
    here = Path(__file__).parent
    engine = [sys.executable, str(here / "engine_program.py"), "--port", "{port}", "--model", "{model}"]
    asking = [sys.executable, str(here / "asking_program.py"), "{output_dir}", "{tasks}"]
    with site.config.open("a") as config:
        config.write(f'[harnesses.asking]\nkind = "command"\ncommand = {json.dumps(asking)}\n')
        config.write(f"[engines.stub]\ncommand = {json.dumps(engine)}\nidle_seconds = 300\nstart_timeout_seconds = 20\n")
        config.write('args = { behave = "--behave", size = "--size" }\n')


def end_engines(site: Site) -> None:
    """End what is left of engines and their gateway."""
    engines = site.folder / "data" / "engines"
    names = [folder.name for folder in (*engines.glob("engine-*"), *engines.glob("gateway/*"))]
    kill_all(lambda: [pid for name in names for pid in processes_of_job(name)])
