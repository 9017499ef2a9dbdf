//! `tandem-mount URL DIRECTORY`, also called by mount(8) as `mount.tandemfs`.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use mimalloc::MiMalloc;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tandem_mount::adapter::{Mount, MountSettings};
use tandem_mount::background;
use tandem_mount::fs::atime::When;
use tandem_mount::fs::remote::Remote;
use tandem_mount::fs::{Fs, Options};
use tandem_mount::options::{Asked, CommandLine, USAGE, parse};
use tandem_mount::read_ahead;
use tandemfs::client::{Client, is_refused, normal_url};
use tandemfs::clock::SystemClock;
use tandemfs::config::cache_directory;
use tandemfs::name::join_path;
use tandemfs::{Error, ErrorKind, Result, credentials};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Threads for what the caches cannot answer.
const THREADS: usize = 4;
/// How long what is open may keep the process after it was told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Exit statuses of mount(8): wrong usage, and a mount that failed.
const USAGE_STATUS: u8 = 1;
const FAILURE_STATUS: u8 = 32;

/// It gives memory back that large buffers took (`docs/decisions/0005-allocator.md`).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let Ok(arguments) = std::env::args_os().map(OsString::into_string).collect::<Result<Vec<_>, _>>() else {
        eprintln!("tandem-mount: an argument is not UTF-8");
        return ExitCode::from(USAGE_STATUS);
    };
    let mut arguments = arguments.into_iter();
    let name = arguments.next().unwrap_or_default();
    // mount(8) asks for the second one when it remounts: that is the type in the mount table.
    let names = ["mount.tandemfs", "mount.fuse.tandemfs"];
    let helper = Path::new(&name).file_name().is_some_and(|name| names.iter().any(|helper| name == *helper));
    let line = match parse(arguments, helper) {
        Ok(Asked::Mount(line)) => *line,
        Ok(Asked::Help) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Version) => {
            println!("tandem-mount {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("tandem-mount: {}", error.subject());
            return ExitCode::from(USAGE_STATUS);
        }
    };
    let level = if line.verbose { "tandem_mount=info" } else { "tandem_mount=warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    let mounts = !line.fake && !line.options.remount;
    if mounts && !line.foreground && !background::is_background() {
        return match background::start() {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                eprintln!("tandem-mount: cannot start in the background: {error}");
                ExitCode::from(FAILURE_STATUS)
            }
        };
    }
    match mount(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("tandem-mount: {reason}");
            ExitCode::from(FAILURE_STATUS)
        }
    }
}

/// Mounts, and serves until it is unmounted. An error is a sentence for people.
fn mount(line: &CommandLine) -> Result<(), String> {
    let url = normal_url(&line.url)
        .map_err(|error| format!("{} is not the URL of a daemon: {}", line.url, error.subject()))?;
    let options = &line.options;
    let is_root = rustix::process::geteuid().is_root();
    if options.remount {
        enter_namespace(line)?;
        return remount(line);
    }
    if (options.suid || options.dev) && !is_root {
        return Err("suid and dev are for root only".into());
    }
    let given = match &options.credentials {
        Some(path) => credentials::from_file(path),
        None => credentials::find(&url),
    };
    let given = given.map_err(|error| error.to_string())?;
    let ca = options.ca.as_ref().map(std::fs::read).transpose();
    let ca = ca.map_err(|error| format!("cannot read the certificate authority: {error}"))?;
    let client = Client::with_ca(&url, given, ca.as_deref()).map_err(|error| error.to_string())?;
    enter_namespace(line)?;
    let directory = mount_point(&line.directory)?;
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => "there is no /dev/fuse; load the kernel module `fuse`".into(),
            io::ErrorKind::PermissionDenied => {
                "not allowed to open /dev/fuse, which should have mode 0666".into()
            }
            _ => format!("cannot open /dev/fuse: {error}"),
        });
    }
    if line.fake {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(THREADS)
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let result = serve(line, &url, &directory, client, &runtime, is_root);
    // A request that the daemon does not answer must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn serve(
    line: &CommandLine,
    url: &str,
    directory: &Path,
    client: Client,
    runtime: &Runtime,
    is_root: bool,
) -> Result<(), String> {
    let options = &line.options;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let settings = Options {
        volume: options.volume.clone(),
        read_only: options.read_only,
        sync: options.sync,
        lease: options.lease,
        cache_directory: Some(options.cache_directory.clone().unwrap_or_else(cache_directory)),
        cache_size: options.cache_size,
        client: format!("{}:{}", host.trim_end(), directory.display()),
        offline_timeout: options.offline_timeout,
        memory: options.memory,
        root_owner: (!is_root)
            .then(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())),
        ids: options.ids.clone(),
        atime: options.atime,
    };
    let remote: Arc<dyn Remote> = Arc::new(client);
    let fs = runtime
        .block_on(Fs::open(remote, Arc::new(SystemClock), settings))
        .map_err(|error| why_not(url, options.volume.as_deref(), &error))?;
    let fs = runtime.block_on(fs.below(&options.subdir)).map_err(|error| {
        let path = join_path(&options.subdir);
        format!("cannot mount {} of the volume: {error}", String::from_utf8_lossy(&path))
    })?;
    let fs = Arc::new(fs);
    let settings = MountSettings {
        source: url.to_owned(),
        read_only: fs.is_read_only(),
        sync: options.sync,
        no_exec: options.no_exec,
        no_atime: options.atime.when == When::Never,
        suid: options.suid,
        dev: options.dev,
        allow_other: options.allow_other,
    };
    let mut mount = Mount::new(&fs, runtime.handle(), directory, &settings)
        .map_err(|error| format!("cannot mount at {}: {error}", directory.display()))?;
    let mut unmounter = mount.unmounter();
    let place = directory.to_owned();
    let ending = Arc::clone(&fs);
    runtime.spawn(async move {
        if wait_for_signal().await.is_err() {
            return;
        }
        log::info!("unmounting");
        if let Err(error) = ending.commit_all().await {
            log::error!("not everything could be written: {error}");
        }
        if unmounter.unmount().is_err() {
            // In use: take it out of sight; what is open has a while to end.
            detach(&place);
            tokio::time::sleep(GRACE).await;
            let _failed = ending.stop().await;
            std::process::exit(0);
        }
    });
    let serving = std::thread::spawn(move || mount.serve());
    runtime.spawn(Fs::offer_lost(Arc::downgrade(&fs)));
    // The first call shows that the mount answers.
    let root = std::fs::metadata(directory).map_err(|error| format!("the mount does not answer: {error}"))?;
    if is_root && let Err(error) = read_ahead::raise(root.dev()) {
        log::warn!("the kernel keeps its own read-ahead: {error}");
    }
    if background::is_background() {
        background::detach(options.log.as_deref())
            .map_err(|error| format!("cannot go to the background: {error}"))?;
    }
    match serving.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("serving the mount: {error}")),
        Err(_) => Err("the mount has crashed".into()),
    }
}

/// Goes to the mount namespace that mount(8) was told of. What else is needed of the file system is read before, as
/// mount(8) describes it. The system demands that there is one thread only.
fn enter_namespace(line: &CommandLine) -> Result<(), String> {
    let Some(path) = &line.namespace else { return Ok(()) };
    let why = |error: io::Error| format!("cannot enter the namespace {}: {error}", path.display());
    let namespace = File::open(path).map_err(why)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|error| why(error.into()))
}

/// Changes the flags of a mount, as mount(8) does it for file systems of the kernel.
fn remount(line: &CommandLine) -> Result<(), String> {
    let options = &line.options;
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::SYNCHRONOUS, options.sync);
    flags.set(MountFlags::NOEXEC, options.no_exec);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    if line.fake {
        return Ok(());
    }
    rustix::mount::mount_remount(&line.directory, flags, c"")
        .map_err(|error| format!("cannot remount {}: {error}", line.directory.display()))
}

/// The directory to mount at. One that a mount has left dead behind is cleaned first.
fn mount_point(directory: &Path) -> Result<PathBuf, String> {
    let mut metadata = std::fs::metadata(directory);
    // The kernel may remember the attributes of a dead mount's root; its free space it has to ask for.
    let dead = rustix::fs::statvfs(directory).is_err_and(|error| error == rustix::io::Errno::NOTCONN);
    if dead || metadata.as_ref().is_err_and(is_dead) {
        detach(directory);
        metadata = std::fs::metadata(directory);
    }
    let shown = directory.display();
    match metadata.as_ref().map(Metadata::is_dir) {
        Ok(true) => (),
        Ok(false) => return Err(format!("{shown} is not a directory")),
        Err(error) => return Err(format!("cannot mount at {shown}: {error}")),
    }
    directory.canonicalize().map_err(|error| format!("cannot mount at {shown}: {error}"))
}

/// "Transport endpoint is not connected": the process behind a mount is gone.
fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
}

/// Takes a mount out of sight, whoever uses it.
fn detach(directory: &Path) {
    if rustix::mount::unmount(directory, UnmountFlags::DETACH).is_err() {
        // Who may not does it through the helper that may.
        match Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(directory).status() {
            Ok(status) if status.success() => (),
            Ok(status) => log::warn!("fusermount3: {status}"),
            Err(error) => log::warn!("fusermount3: {error}"),
        }
    }
}

async fn wait_for_signal() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        biased;
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    Ok(())
}

/// Why a session could not be opened.
fn why_not(url: &str, volume: Option<&str>, error: &Error) -> String {
    match error.kind() {
        ErrorKind::Unauthenticated => format!("the daemon at {url} does not accept the credentials: {error}"),
        ErrorKind::NotFound => match volume {
            Some(volume) => format!("there is no volume {volume:?} at {url}, or it is not granted to you"),
            None => format!("{url} does not answer as a TandemFS daemon does: {error}"),
        },
        _ if is_refused(error) => format!("nobody listens at {url}"),
        _ => format!("cannot open a session at {url}: {error}"),
    }
}
