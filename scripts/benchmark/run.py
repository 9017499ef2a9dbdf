"""One workload on one place: what is measured, and by how many processes."""
import contextlib, multiprocessing, os, subprocess, time

# Seconds in which what the step before has left undone is done: a mount that is alone sends changes a twentieth of a second late.
PAUSE = 0.1


class Run:
    """Collects the seconds per call of each step that a workload measures on a place. What it needs besides lies in `scratch`."""

    def __init__(self, place, sizes, scratch, watch=None):
        self.place, self.sizes, self.scratch, self.figures = place, sizes, scratch, {}
        self.watch = watch or (lambda run, step: contextlib.nullcontext())

    def at(self, name):
        return os.path.join(self.place.path, name)

    def cool(self):
        self.place.cool()

    def measure(self, step, work, calls=1):
        self._record(step, calls, lambda: timed(work))

    def measure_jobs(self, step, jobs, work, calls):
        """The same, with `work(0)`, `work(1)` … in a process each; `calls` is what they make together."""
        self._record(step, calls, lambda: parallel(jobs, work))

    def command(self, step, *arguments, **options):
        self.measure(step, lambda: command(*arguments, **options))

    def _record(self, step, calls, seconds):
        # What the steps before have left to be written is not the cost of this one.
        self.place.settle()
        time.sleep(PAUSE)
        with self.watch(self, step):
            self.figures[step] = seconds() / calls


def timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def parallel(jobs, work):
    """Seconds from the first process's begin to the last one's end; starting them is not measured."""
    if jobs == 1:
        return timed(lambda: work(0))
    context = multiprocessing.get_context("fork")
    ready, times = context.Barrier(jobs), context.SimpleQueue()

    def job(number):
        ready.wait()
        begin = time.perf_counter()
        work(number)
        times.put((begin, time.perf_counter()))

    processes = [context.Process(target=job, args=(number,)) for number in range(jobs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode != 0 for process in processes):
        raise OSError("a process of several has failed")
    begins, ends = zip(*(times.get() for _ in processes))
    return max(ends) - min(begins)


def command(*arguments, **options):
    subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, **options)
