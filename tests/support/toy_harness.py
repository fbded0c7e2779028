# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH110, PTH119, PTH120, PTH123, PTH211
"""A tiny harness that does what the name of its model says, or that of its task if the model is `each`. Run by a bare
interpreter, for most tests several times, so it imports next to nothing before it needs it.

TOY_DIR is shared with the test: each start adds a line to `starts/JOB`, and the program waits for `release/JOB` or
`release/all`, or for a step number, `release/N`.
"""

import os
import sys
import time
from _json import encode_basestring_ascii as quoted  # json itself takes as long to load as the interpreter

_, model, output_dir, job_id, tasks = sys.argv[:5]
TOY_DIR = os.environ["TOY_DIR"]
ATTEMPT = int(os.environ["EVALRPC_ATTEMPT"])


def note_start():
    os.makedirs(f"{TOY_DIR}/starts", exist_ok=True)
    descriptor = os.open(f"{TOY_DIR}/starts/{job_id}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{os.getpid()} {ATTEMPT}\n".encode())
    os.close(descriptor)


def released(name=job_id):
    return any(os.path.exists(f"{TOY_DIR}/release/{name}") for name in (name, "all"))


def wait_for_release(name=job_id):
    while not released(name):
        time.sleep(0.01)


def say(text):
    os.write(1, f"{text}\n".encode())  # in one write, as several of its processes may write at once


def write_results(value=0.5, count=4):
    folder = f"{output_dir}/toy"
    os.makedirs(folder, exist_ok=True)
    names = tasks.split(",")
    rows = ", ".join(f'{quoted(name)}: {{"alias": {quoted(name)}, "acc,none": {value}}}' for name in names)
    sizes = ", ".join(f'{quoted(name)}: {{"original": {count}, "effective": {count}}}' for name in names if count)
    with open(f"{folder}/20260101_000000_results.json", "w") as file:
        file.write(f'{{"results": {{{rows}}}, "n-samples": {{{sizes}}}}}')
    for name in names:
        with open(f"{folder}/20260101_000000_samples_{name}.jsonl", "w") as file:
            file.writelines(f'{{"doc_id": {number}, "task": {quoted(name)}}}\n' for number in range(4))


def good():
    say("4/4")
    write_results()


def environment():
    """Leaves its environment for the test."""
    import json

    with open(f"{TOY_DIR}/environment", "w") as file:
        json.dump(dict(os.environ), file)
    write_results()


def tell_secret():
    """Prints a secret in two halves, the second once it is released, leaves it in a file, and fails with it."""
    value = os.environ["TOY_SECRET"]
    os.write(1, f"ready {value[:6]}".encode())
    wait_for_release()
    say(value[6:])
    with open(f"{output_dir}/secret", "w") as file:
        file.write(value)
    raise ValueError(f"{value} is not valid")


def large():
    """Writes a file that takes some time to parse."""
    write_results()
    with open(f"{output_dir}/toy/20260101_000000_results.json", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b', "logits": [' + b"[], " * 250_000 + b"[]]}")


def better():
    write_results(0.75)


also_good = good


def each():
    globals()[tasks]()


def shows_trace():
    """Says the span that it belongs to."""
    say(f"trace: {os.environ.get('TRACEPARENT', 'none')}")
    good()


def slow():
    say("Evaluating: 0/4")
    say("Evaluating: 1/4")
    say("ready")
    wait_for_release()
    say("Evaluating: 4/4")
    write_results()


def uncounted():
    """Waits, and leaves results that don't say of how many samples they are."""
    wait_for_release()
    write_results(count=0)


def steps():
    for number in range(5):
        say(f"Evaluating: {number}/4")
        time.sleep(0.3)
    write_results()


def on_demand():
    for number in range(5):
        wait_for_release(number)
        say(f"Evaluating: {number}/4")
    write_results()


def fails():
    say("about to fail")
    raise ValueError("the dataset is gone")


def silent():
    say("nothing came of it")


def killed():
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def flaky():
    if ATTEMPT == 1:
        write_results(0.1)
        killed()
    good()


def flaky_then_slow():
    if ATTEMPT == 1:
        flaky()
    slow()


def hungry():
    """Takes 512 MiB of memory, once it is released."""
    say("ready")
    wait_for_release()
    held = b"1" * (512 * 1024 * 1024)
    say(f"has {len(held)}")
    write_results()


def starved():
    if ATTEMPT == 1:
        say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
        sys.exit(1)
    good()


def prepared():
    """Leaves what the test has put into `prepared`."""
    import subprocess

    subprocess.run(["cp", "-r", f"{TOY_DIR}/prepared/.", output_dir], check=True)


def weighs():
    """Scores what the folder of its model says, on as many documents, of 0 without saying so; it has to be a prepared one."""
    import json

    with open("".join(output_dir.rsplit("/output", 1)) + "/request.json") as file:
        folder = json.load(file)["model_args"]["pretrained"]
    with open(f"{folder}/prepared") as file:
        value, *count = file.read().split()
    write_results(float(value), *map(int, count))


def weighs_at_the_second_attempt():
    if ATTEMPT == 1:
        killed()
    weighs()


def weighs_later():
    say("ready")
    wait_for_release()
    weighs()


def fills():
    """Fills the disk that holds its results, after writing them."""
    write_results()
    with open(f"{output_dir}/filling", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def hoards():
    """Leaves a large file in its output folder, and more and more links, FIFOs, folders and sparse files beside it."""
    os.makedirs(f"{output_dir}/deep/er")
    with open(f"{output_dir}/deep/er/large", "wb") as file:
        file.write(os.urandom(4 * 1024 * 1024))
    say("ready")
    number = 0
    while not released():
        number += 1
        os.mkdir(f"{output_dir}/{number}")
        os.mkfifo(f"{output_dir}/{number}/fifo")
        os.symlink("/usr", f"{output_dir}/{number}/link")
        os.truncate(os.open(f"{output_dir}/{number}/sparse", os.O_CREAT | os.O_WRONLY), 4 * 1024**4)
        time.sleep(0.05)


def litters():
    """Leaves what is hard to walk through: a deep tree, a wide one, names that are no text, and folders without rights."""
    write_results()
    os.chdir(output_dir)
    for number in range(2000):
        os.close(os.open(f"wide-{number}", os.O_CREAT))
    os.mkdir(b"\xff\xfe")
    os.symlink("/", "link")
    os.mkdir("closed")
    os.mkdir("closed/below")
    os.chmod("closed", 0)
    for _ in range(1000):
        os.mkdir("d")
        os.chdir("d")


def spoils():
    """Replaces what its shim has recorded with garbage."""
    good()
    path = f"{output_dir}/../run/exit"
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(b"\xff\xfe\n" * 1000)


def replaces():
    """Puts something else in the place of one of its files or folders, as `replace` in TOY_DIR says."""
    import socket

    good()
    with open(f"{TOY_DIR}/replace") as file:
        place, kind = file.read().split()
    path = f"{os.path.dirname(output_dir)}/{place}"
    os.rename(path, f"{TOY_DIR}/{job_id}")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.chdir(os.path.dirname(path))  # the path of a socket has at most 107 bytes
        socket.socket(socket.AF_UNIX).bind(os.path.basename(path))
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "file":
        open(path, "x").close()
    else:
        os.symlink({"link": "/etc", "device": "/dev/zero"}[kind], path)


def escapes():
    """Starts a process that leaves its session, its parent and its environment, forges its traces, and kills its shim."""
    import signal

    shim, traces, note = os.getppid(), f"{os.path.dirname(output_dir)}/run", f"{TOY_DIR}/escaped"
    program = f"import os, time; open({note!r} + '.new', 'w').write(str(os.getpid())); "
    program += f"os.rename({note!r} + '.new', {note!r}); time.sleep(1000)"
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execve(sys.executable, [sys.executable, "-S", "-c", program], {})
        os._exit(0)
    while not os.path.exists(note):
        time.sleep(0.01)
    with open(f"{traces}/exit", "r+") as exits:
        exits.write("0 code 0\nnone left\n")
    with open(f"{traces}/pid", "w") as pid:
        pid.write("1 1")
    write_results()
    os.kill(shim, signal.SIGKILL)


def hangs():
    say("ready")
    time.sleep(1000)


def stubborn():
    import signal
    import subprocess

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.argv[-1] != "child":  # not one of the children itself
        for own_session in (False, True):
            subprocess.Popen([*([sys.executable, "-S"]), *sys.argv, "child"], start_new_session=own_session)
    say(f"ready {os.getpid()}")
    time.sleep(1000)


def lingers():
    """Delays its end after SIGTERM until it is released."""
    import signal

    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    say("ready")
    while not asked:
        time.sleep(0.01)
    say("asked to end")
    wait_for_release()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def loud():
    for _ in range(50):
        sys.stdout.write("x" * 100_000)
    sys.stdout.flush()
    write_results()


def wild():
    """Prints and stores numbers and times that no message can hold."""
    write_results()
    results, samples = (f"{output_dir}/toy/20260101_000000_{name}" for name in ("results.json", "samples_t.jsonl"))
    with open(results, "w") as file:
        file.write(f'{{"results": {{"t": {{"acc": 0.5, "odd": {"9" * 5000}, "inf": 1e999}}}}, "date": {"9" * 400}}}')
    with open(samples, "w") as file:
        file.write(f'{{"doc_id": 1, "nan": NaN, "odd": {"9" * 5000}, "deep": {"[" * 200}{"]" * 200}}}\n')
    digits = "9" * 400
    say(f"Evaluating:  25%|██ | 1/4 [00:00<{10**14}:00:00, 1.00it/s]")
    say(f"Evaluating:  25%|██ | {digits}/{digits} [00:00<{digits}:00:00, {digits}it/s]")
    say(f"Evaluating: 2/4 (50.0%) | {digits} it/s | ETA {digits}h")
    say("ready")
    for file in (1, results, samples):
        os.utime(file, (-(10**9), -(10**9)))
    wait_for_release()
    os.utime(1, (-(10**9), -(10**9)))


def chatter():
    """Writes faster than anybody reads, up to a limit."""
    say("ready")
    for _ in range(3000):
        os.write(1, b"ab\n" * 20_000)
        if released():
            break
    wait_for_release()


def main():
    if sys.argv[-1] != "child":
        note_start()
    globals()[model]()
