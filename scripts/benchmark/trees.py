"""Workloads of ordinary programs on trees of files."""
import io, os, random, tarfile

from .run import command

# Files in a directory, and such directories in one above.
PER_DIRECTORY, DIRECTORIES = 20, 10
# What grep looks for: it is in every hundredth file.
NEEDLE = "needle"
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
}


def source(run):
    """A tree of 2,000 text files, 15 MiB, unpacked, listed, counted, searched and copied by `tar`, `find`, `du`, `grep -r` and `cp -r`."""
    tree, archive = run.at("tree"), source_archive(run, run.sizes.source_files)
    os.mkdir(tree)
    rehearse(run)
    run.command("tar -x", "tar", "-xf", archive, "-C", tree)
    for step, arguments in (("find", ["find", tree]), ("du", ["du", "-s", tree]), ("grep -r", ["grep", "-r", NEEDLE, tree])):
        cool(run)
        run.command(f"{step}, cold", *arguments)
        run.command(f"{step}, warm", *arguments)
    run.command("cp -r", "cp", "-r", tree, run.at("copy"))


def git(run):
    """The same tree put under git: `init` and `add`, `commit`, and `status` with nothing changed."""
    tree = run.at("tree")
    unpack(run, tree, run.sizes.source_files)
    rehearse(run)

    def begin():
        git_in(tree, "init", "--quiet")
        git_in(tree, "add", ".")

    run.measure("init + add", begin)
    # Its `gc` would go on in the background.
    run.measure("commit", lambda: git_in(tree, "-c", "maintenance.auto=false", "commit", "--quiet", "--message", "All of it"))
    cool(run)
    run.measure("status, cold", lambda: git_in(tree, "status", "--short"))
    run.measure("status, warm", lambda: git_in(tree, "status", "--short"))


def remove(run):
    """`rm -rf` of a tree of 10,000 files that was just unpacked."""
    tree = run.at("tree")
    unpack(run, tree, run.sizes.tree_files)
    rehearse(run)
    run.command("rm -rf", "rm", "-rf", tree)


def cargo(run):
    """`cargo build` of a workspace of five small crates that need nothing from elsewhere: from nothing, after one line has changed, and with
    nothing to do."""
    workspace, rehearsal = run.at("workspace"), os.path.join(run.scratch, "workspace")
    for place in (workspace, rehearsal):
        write_crates(place)
    build(rehearsal)
    run.measure("build", lambda: build(workspace))
    with open(os.path.join(workspace, "part0/src/lib.rs"), "a") as f:
        f.write("pub fn added(n: u64) -> u64 { n + 1 }\n")
    run.measure("build after a change", lambda: build(workspace))
    run.measure("build, nothing to do", lambda: build(workspace))


def build(workspace):
    # With this variable it would build in a directory that is not measured.
    environment = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
    command("cargo", "build", "--quiet", "--offline", cwd=workspace, env=environment)


def git_in(directory, *arguments):
    command("git", "-C", directory, *arguments, env=dict(os.environ, **GIT))


def cool(run):
    run.cool()
    rehearse(run)


def rehearse(run):
    """Has the programs do nearly nothing elsewhere: they themselves are to come from the cache, also where files are cold."""
    elsewhere = os.path.join(run.scratch, "elsewhere")
    copy = os.path.join(elsewhere, "copy")
    os.makedirs(elsewhere, exist_ok=True)
    git_in(elsewhere, "init", "--quiet")
    git_in(elsewhere, "status")
    command("cp", "-r", os.path.join(elsewhere, ".git"), copy)
    for arguments in (["find", copy], ["du", "-s", copy], ["grep", "-r", "repositoryformatversion", copy], ["rm", "-rf", copy]):
        command(*arguments)
    command("tar", "-tf", source_archive(run, run.sizes.source_files))


def unpack(run, tree, files):
    os.mkdir(tree)
    command("tar", "-xf", source_archive(run, files), "-C", tree)


def source_archive(run, files):
    """A tar archive of so many text files, 7.5 KiB in the mean and the same in each run; it lies on the local disk."""
    path = os.path.join(run.scratch, f"{files}.tar")
    if os.path.exists(path):
        return path
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz_", k=chance.randint(2, 10))) for _ in range(2000)]
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            part, module = divmod(number // PER_DIRECTORY, DIRECTORIES)
            directory = f"part{part}/module{module}"
            if number % (PER_DIRECTORY * DIRECTORIES) == 0:
                add(tar, f"part{part}")
            if number % PER_DIRECTORY == 0:
                add(tar, directory)
            size = min(int(chance.lognormvariate(8.5, 1)), 200_000)
            lines = [" ".join(chance.choices(words, k=8)) for _ in range(size // 55 + 1)]
            if number % 100 == 0:
                lines.append(NEEDLE)
            add(tar, f"{directory}/file{number}.txt", "\n".join([str(number), *lines, ""]).encode())
    return path


def add(tar, name, text=None):
    info = tarfile.TarInfo(name)
    info.mtime = 1_700_000_000
    if text is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = len(text), 0o644
    tar.addfile(info, io.BytesIO(text or b""))


def write_crates(workspace):
    """Four libraries of 60 functions, and a program that calls them."""
    parts = [f"part{number}" for number in range(4)]
    functions = "".join(
        f"pub fn work{i}(n: u64) -> u64 {{ (0..n).map(|i| i.wrapping_mul({i} + n) ^ (i >> 3)).filter(|i| i % 7 != 0).sum() }}\n"
        for i in range(60))
    calls = "".join(f"    println!(\"{{}}\", {part}::work{i}(10));\n" for part in parts for i in range(0, 60, 10))
    needs = "".join(f'{part} = {{ path = "../{part}" }}\n' for part in parts)
    written = {"Cargo.toml": '[workspace]\nresolver = "3"\nmembers = ["program", "part*"]\n',
               "program/Cargo.toml": manifest("program") + "[dependencies]\n" + needs,
               "program/src/main.rs": f"fn main() {{\n{calls}}}\n"}
    for part in parts:
        written |= {f"{part}/Cargo.toml": manifest(part), f"{part}/src/lib.rs": functions}
    for name, text in written.items():
        path = os.path.join(workspace, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)


def manifest(name):
    return f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2024"\n'
