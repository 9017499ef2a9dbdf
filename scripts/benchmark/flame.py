"""Flame graphs of the programs behind a mount, step by step."""
import contextlib, os, re, shutil, signal, subprocess, sys, time

NEEDED = {"perf": "the package linux-perf", "inferno-collapse-perf": "cargo install inferno", "inferno-flamegraph": "cargo install inferno"}
HERTZ = 499
# Seconds that perf takes until it looks.
START = 0.5


class Flame:
    """Writes DIR/WORKLOAD-STEP-PLACE.svg for each step on a place that has programs."""

    def __init__(self, directory):
        for program, source in NEEDED.items():
            if not shutil.which(program):
                sys.exit(f"--flame needs {program}: {source}")
        self.directory = directory
        os.makedirs(directory, exist_ok=True)

    def watch(self, workload):
        return lambda run, step: self._watch(run.place, f"{workload}-{step}-{run.place.name}")

    @contextlib.contextmanager
    def _watch(self, place, title):
        processes = place.processes()
        if not processes:
            yield
            return
        name = os.path.join(self.directory, re.sub(r"[^a-z0-9]+", "-", title.lower()))
        # The programs are built without frame pointers, so the stack is copied and unwound afterwards.
        perf = subprocess.Popen(
            ["perf", "record", "--quiet", "--freq", str(HERTZ), "--call-graph", "dwarf,16384", "--output", name + ".perf",
             "--pid", ",".join(map(str, processes))], stdin=subprocess.DEVNULL)
        time.sleep(START)
        try:
            yield
        finally:
            perf.send_signal(signal.SIGINT)
            perf.wait()
        self._draw(name, title)

    def _draw(self, name, title):
        with open(name + ".svg", "wb") as f:
            script = subprocess.Popen(["perf", "script", "--no-inline", "--input", name + ".perf"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            stacks = subprocess.Popen(["inferno-collapse-perf"], stdin=script.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            graph = subprocess.run(["inferno-flamegraph", "--title", title], stdin=stacks.stdout, stdout=f, stderr=subprocess.DEVNULL)
        script.wait()
        stacks.wait()
        os.unlink(name + ".perf")
        if graph.returncode != 0:
            # Too short to have been seen once, or mostly idle.
            os.unlink(name + ".svg")
