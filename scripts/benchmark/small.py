"""Workloads on small files, and on small changes that must be durable."""
import os, sqlite3

from .large import processes

SIZE = 4096


def files(run):
    """5,000 files of 4 KiB created, listed, read, renamed and removed, by one process, and by four with a directory each."""
    for jobs in (1, 4):
        who, count = processes(jobs), run.sizes.files
        directories = [run.at(f"{jobs}-{number}") for number in range(jobs)]
        names = [[f"{directory}/f{i}" for i in range(count // jobs)] for directory in directories]
        for directory in directories:
            os.mkdir(directory)

        def measure(step, work):
            run.measure_jobs(f"{step}, {who}", jobs, work, count // jobs * jobs)

        def stat(number):
            for entry in os.scandir(directories[number]):
                entry.stat()

        def read(number):
            for name in names[number]:
                fd = os.open(name, os.O_RDONLY)
                os.read(fd, SIZE)
                os.close(fd)

        measure("create", lambda number: create(names[number], sync=False))
        run.cool()
        measure("list + stat, cold", stat)
        measure("list + stat, warm", stat)
        run.cool()
        measure("read, cold", read)
        measure("read, warm", read)
        measure("rename", lambda number: [os.rename(name, name + "r") for name in names[number]])
        measure("remove", lambda number: [os.unlink(name + "r") for name in names[number]])


def fsync(run):
    """Files of 4 KiB created, written and fsynced one after the other, by one process and by four with a directory each."""
    for jobs in (1, 4):
        each = run.sizes.synced // jobs
        directories = [run.at(f"{jobs}-{number}") for number in range(jobs)]
        for directory in directories:
            os.mkdir(directory)
        run.measure_jobs(
            f"create + fsync, {processes(jobs)}", jobs,
            lambda number: create([f"{directories[number]}/f{i}" for i in range(each)], sync=True), each * jobs)


def append(run):
    """128 bytes appended to a log and fdatasynced, again and again."""
    record = os.urandom(128)

    def write():
        fd = os.open(run.at("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for _ in range(run.sizes.synced):
            os.write(fd, record)
            os.fdatasync(fd)
        os.close(fd)

    run.measure("append + fdatasync", write, run.sizes.synced)


def sqlite(run):
    """Transactions of one row in SQLite with synchronous = FULL, with the write-ahead log and with the rollback journal."""
    for mode, name in (("wal", "write-ahead log"), ("delete", "rollback journal")):
        base = sqlite3.connect(run.at(mode), isolation_level=None)
        base.execute(f"PRAGMA journal_mode = {mode}")
        base.execute("PRAGMA synchronous = FULL")
        base.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")

        def insert():
            for _ in range(run.sizes.transactions):
                base.execute("INSERT INTO t (text) VALUES (?)", ("x" * 100,))

        run.measure(f"transaction, {name}", insert, run.sizes.transactions)
        base.close()


def create(names, sync):
    data = os.urandom(SIZE)
    for number, name in enumerate(names):
        fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
        # No two files are alike, for equal data may be stored once.
        os.write(fd, number.to_bytes(8, "little") + data[8:])
        if sync:
            os.fsync(fd)
        os.close(fd)
