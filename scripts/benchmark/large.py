"""Workloads on large files."""
import os, random

MIB = 1 << 20
PAGE = 4096


def sequential(run):
    """Files of 512 MiB together written and read from begin to end in pieces of 1 MiB, by one process and by eight with a file each."""
    for jobs in (1, 8):
        who = processes(jobs)
        each = max(1, run.sizes.large // jobs)

        def write(number, sync, copies=1):
            write_file([run.at(f"{number}-{copy}") for copy in range(copies)], each, sync)

        def read(number):
            read_file(run.at(f"{number}-0"))

        def remove():
            for entry in list(os.scandir(run.place.path)):
                os.unlink(entry.path)

        run.measure_jobs(f"write, {who}", jobs, lambda number: write(number, sync=False), 1)
        remove()
        run.measure_jobs(f"write + fsync, {who}", jobs, lambda number: write(number, sync=True), 1)
        run.cool()
        run.measure_jobs(f"read, cold, {who}", jobs, read, 1)
        run.measure_jobs(f"read, warm, {who}", jobs, read, 1)
        remove()
        if jobs == 1 and not run.place.processes():
            # What two copies on one disk must cost at least.
            run.measure(f"write two copies + fsync, {who}", lambda: write(0, sync=True, copies=2))
            remove()


def random_access(run):
    """4 KiB each at random places of a file of 512 MiB, by one process and by eight. With fsync: one by each process, at its end."""
    name = run.at("file")
    write_file([name], run.sizes.large, sync=True)
    pages = random.Random(1).sample(range(run.sizes.large * MIB // PAGE), run.sizes.accesses)
    data = os.urandom(PAGE)

    def part(jobs, number):
        return pages[number::jobs]

    def read(jobs, number):
        fd = os.open(name, os.O_RDONLY)
        for page in part(jobs, number):
            os.pread(fd, PAGE, page * PAGE)
        os.close(fd)

    def write(jobs, number, sync):
        fd = os.open(name, os.O_WRONLY)
        for page in part(jobs, number):
            os.pwrite(fd, page.to_bytes(8, "little") + data[8:], page * PAGE)
        if sync:
            os.fsync(fd)
        os.close(fd)

    for jobs in (1, 8):
        run.cool()
        run.measure_jobs(f"read, cold, {processes(jobs)}", jobs, lambda number: read(jobs, number), len(pages))
    read_file(name)
    for jobs in (1, 8):
        run.measure_jobs(f"read, warm, {processes(jobs)}", jobs, lambda number: read(jobs, number), len(pages))
    for sync, and_sync in ((False, ""), (True, " + fsync")):
        for jobs in (1, 8):
            data = os.urandom(PAGE)
            run.measure_jobs(f"write{and_sync}, {processes(jobs)}", jobs, lambda number: write(jobs, number, sync), len(pages))


def processes(jobs):
    return "1 process" if jobs == 1 else f"{jobs} processes"


def write_file(names, size, sync):
    """Writes `size` MiB to each of some files, piece by piece in turn; no two pieces are alike, for equal data may be stored once."""
    block = os.urandom(MIB)
    files = [open(name, "wb", buffering=0) for name in names]
    for number in range(size):
        piece = number.to_bytes(8, "little") + block[8:]
        for f in files:
            f.write(piece)
    for f in files:
        if sync:
            os.fsync(f.fileno())
        f.close()


def read_file(name):
    with open(name, "rb", buffering=0) as f:
        while f.read(MIB):
            pass
