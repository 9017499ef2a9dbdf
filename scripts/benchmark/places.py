"""What is measured: a directory, the bound of FUSE, a TandemFS mount. Each is fresh for each workload and gone after it."""
import os, shutil, subprocess, tempfile, time

# Seconds within which a program must have mounted, or have ended after it was unmounted and has written what it had.
PATIENCE = 60


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3\n")


class Directory:
    """A directory of whatever file system it lies in; the workloads get an empty one below it."""

    cold = "the kernel's caches are dropped"
    # The workloads that say something about it; all, if there are none.
    workloads = ()

    def __init__(self, name, parent):
        self.name, self.parent, self.path = name, parent, None

    def start(self):
        self.path = tempfile.mkdtemp(prefix="bench-", dir=self.parent)

    def stop(self):
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path = None

    def cool(self):
        self.settle()
        drop_caches()

    def settle(self):
        """Has what is still to be written written: by the kernel to the disk, which sync(2) would do for all other disks as well."""
        subprocess.run(["sync", "--file-system", self.parent], check=True)

    def processes(self):
        """Those that serve it, by number."""
        return []


class Mount(Directory):
    """What is common to the two that are mounted here: the program in the foreground, its mount at `path`."""

    def __init__(self, name, parent, programs):
        super().__init__(name, parent)
        self.programs, self.home, self.server = programs, None, None

    def start(self):
        self.home = tempfile.mkdtemp(prefix="bench-", dir=self.parent)
        self.path = os.path.join(self.home, "mount")
        os.mkdir(self.path)

    def stop(self):
        self.leave()
        if self.home:
            shutil.rmtree(self.home, ignore_errors=True)
        self.home = self.path = None

    def leave(self):
        """Unmounts, and waits for the program."""
        if self.path and os.path.ismount(self.path):
            # One that hangs is taken out of sight, so that the next workload can go on.
            if subprocess.run(["umount", self.path]).returncode != 0:
                subprocess.run(["umount", "--lazy", self.path])
        end(self.server)
        self.server = None

    def cool(self):
        subprocess.run(["umount", self.path], check=True)
        self.unmounted()
        self.settle()
        drop_caches()
        self.mount()

    def log(self):
        return open(os.path.join(self.home, "log"), "a")

    def wait_mounted(self):
        end_of_patience = time.monotonic() + PATIENCE
        while not os.path.ismount(self.path):
            if self.server.poll() is not None or time.monotonic() > end_of_patience:
                raise OSError(f"{self.name} did not mount: " + open(os.path.join(self.home, "log")).read())
            time.sleep(0.01)

    def processes(self):
        return [self.server.pid]


class Bound(Mount):
    """The program that answers from memory: see mount/examples/fuse-bound."""

    cold = "mounted anew and the kernel's caches dropped; its files stay in its memory"

    def start(self):
        super().start()
        self.server = subprocess.Popen([self.programs["fuse-bound"], self.path, *self.backing()], stdin=subprocess.PIPE, stderr=self.log())
        self.wait_mounted()

    def backing(self):
        """The directory for what is in files, if it is not to be in memory."""
        return []

    def unmounted(self):
        """It goes on without a mount."""

    def mount(self):
        self.server.stdin.write(b"\n")
        self.server.stdin.flush()
        self.wait_mounted()

    def stop(self):
        if self.server:
            self.server.stdin.close()
        super().stop()


class Passthrough(Bound):
    """The same, with the kernel reading and writing open files by itself, in a directory beside the local one."""

    cold = "mounted anew and the kernel's caches dropped; its files come from the disk"
    workloads = ("sequential", "random")

    def backing(self):
        path = os.path.join(self.home, "files")
        os.mkdir(path)
        return [path]


class Tandem(Mount):
    """A daemon of its own with three nodes in directories beside the local one, and one mount of it, or two."""

    cold = "mounted anew and the kernel's caches dropped; the daemon goes on, with up to 64 MiB of decoded metadata and no file data"

    def __init__(self, name, parent, programs, options, second=False):
        super().__init__(name, parent, programs)
        self.options, self.second = options, second
        self.daemon, self.other = None, None

    def start(self):
        super().start()
        self.daemon = subprocess.Popen(
            [self.programs["tandemd"], "--data", os.path.join(self.home, "data"), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=self.log(), text=True)
        line = self.daemon.stdout.readline()
        if not line.startswith("listening on "):
            raise OSError("tandemd did not start: " + open(os.path.join(self.home, "log")).read())
        self.url = line.split()[-1]
        self.mount()
        if self.second:
            second = os.path.join(self.home, "second")
            os.mkdir(second)
            self.other = self.serve(second)

    def serve(self, path):
        options = ["-o", self.options] if self.options else []
        environment = dict(os.environ, TANDEM_USER="admin", TANDEM_PASSWORD="admin123")
        return subprocess.Popen([self.programs["tandem-mount"], self.url, path, "-f", *options], env=environment, stderr=self.log())

    def mount(self):
        self.server = self.serve(self.path)
        self.wait_mounted()

    def unmounted(self):
        # It ends when all that it has is written.
        self.server.wait(PATIENCE)

    def stop(self):
        end(self.other, terminate=True)
        self.leave()
        end(self.daemon, terminate=True)
        super().stop()
        self.daemon = self.other = None

    def processes(self):
        return [self.daemon.pid, self.server.pid]


def end(process, terminate=False):
    """Waits until a process ends, having told it to or not, and does not wait for ever."""
    if process is None:
        return
    if terminate:
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
