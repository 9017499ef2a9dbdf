//! `tandem-mount URL DIRECTORY`, also called by mount(8) as `mount.tandemfs`.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;
use tandem_mount::adapter::Adapter;
use tandem_mount::background;
use tandem_mount::fs::remote::Remote;
use tandem_mount::fs::{Fs, Options};
use tandem_mount::options::{Asked, CommandLine, USAGE, parse};
use tandem_mount::read_ahead;
use tandemfs::client::{Client, is_refused, normal_url};
use tandemfs::clock::SystemClock;
use tandemfs::{Error, ErrorKind, Result, credentials};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Threads that take in the kernel's calls; what has to wait does so in tasks.
const THREADS: usize = 4;
/// How long what is open may keep the process after it was told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Exit statuses of mount(8): wrong usage, and a mount that failed.
const USAGE_STATUS: u8 = 1;
const FAILURE_STATUS: u8 = 32;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let helper = Path::new(&name).file_name().is_some_and(|name| name == "mount.tandemfs");
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
    if !line.foreground && !line.fake && !background::is_background() {
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
    let directory = mount_point(&line.directory)?;
    let options = &line.options;
    let is_root = rustix::process::geteuid().is_root();
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
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        match error.kind() {
            io::ErrorKind::NotFound => {
                return Err("there is no /dev/fuse; load the kernel module `fuse`".into());
            }
            // fusermount3 opens it for who may not.
            io::ErrorKind::PermissionDenied if !is_root => (),
            _ => return Err(format!("cannot open /dev/fuse: {error}")),
        }
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
        client: format!("{}:{}", host.trim_end(), directory.display()),
        offline_timeout: options.offline_timeout,
        memory: options.memory,
        root_owner: (!is_root)
            .then(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())),
    };
    let remote: Arc<dyn Remote> = Arc::new(client);
    let fs = runtime
        .block_on(Fs::open(remote, Arc::new(SystemClock), settings))
        .map_err(|error| why_not(url, options.volume.as_deref(), &error))?;
    let adapter = Adapter::new(Arc::clone(&fs), runtime.handle().clone());
    let config = config(line, url, fs.is_read_only());
    let mut session = Session::new(adapter.clone(), directory, &config)
        .map_err(|error| format!("cannot mount at {}: {error}", directory.display()))?;
    let kernel = adapter.kernel(&session).map_err(|error| format!("cannot reach the kernel: {error}"))?;
    runtime.block_on(async { fs.start(kernel) });
    let mut unmounter = session.unmount_callable();
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
    let serving = std::thread::spawn(move || session.run());
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

fn config(line: &CommandLine, url: &str, read_only: bool) -> Config {
    let options = &line.options;
    let mut config = Config::default();
    let either = |yes, no, which| if which { yes } else { no };
    config.mount_options = vec![
        MountOption::FSName(url.to_owned()),
        // Named so because fuser drops its own `Subtype` when it mounts without fusermount3.
        MountOption::CUSTOM("subtype=tandemfs".to_owned()),
        MountOption::DefaultPermissions,
        either(MountOption::RO, MountOption::RW, read_only),
        either(MountOption::Suid, MountOption::NoSuid, options.suid),
        either(MountOption::Dev, MountOption::NoDev, options.dev),
        either(MountOption::NoExec, MountOption::Exec, options.no_exec),
    ];
    if options.sync {
        config.mount_options.push(MountOption::Sync);
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
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
