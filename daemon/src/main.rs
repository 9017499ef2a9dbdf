//! `tandemd`: the storage daemon.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tandemd::daemon::{Daemon, Parts};
use tandemd::fsck::command::{self as fsck, Fsck};
use tandemd::options::{self, Options};
use tandemd::restore::{self, Restore};
use tandemd::{allocator, http, short_circuit};
use tandemfs::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let matches = options::command().get_matches();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    allocator::limit_heaps();
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    // Connections and blocks take file descriptors: as many as the machine allows.
    let descriptors = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors });
    // Nothing that the daemon makes is for other users of the machine.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let environment: BTreeMap<_, _> =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
    let result = match matches.subcommand() {
        Some((restore::NAME, matches)) => restore(&Restore::from_matches(matches)),
        Some((fsck::NAME, matches)) => return check(Fsck::from_matches(matches, &environment)),
        _ => Options::load(&matches, &environment).and_then(run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::debug!("{error:?}");
            eprintln!("tandemd: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn restore(restore: &Restore) -> Result<()> {
    let text = restore.run().await?;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// `tandemd fsck` has exit statuses of its own (docs/operations.md).
#[tokio::main]
async fn check(fsck: Result<Fsck>) -> ExitCode {
    let report = match fsck {
        Ok(fsck) => fsck.run().await,
        Err(error) => Err(error),
    };
    let report = report.and_then(|report| Ok((writeln!(std::io::stdout(), "{}", report.text())?, report).1));
    match report {
        Ok(report) => ExitCode::from(u8::from(!report.is_clean())),
        Err(error) => {
            log::debug!("{error:?}");
            eprintln!("tandemd: {error}");
            ExitCode::from(2)
        }
    }
}

#[tokio::main]
async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let listen = options.settings.listen;
    let parts = Parts::from_options(&options)?;
    let daemon = Daemon::start(options.settings, parts).await?;
    let listener = TcpListener::bind(listen)
        .map_err(|error| Error::unavailable(format!("listening on {listen}: {error}")).because(error))?;
    let server = http::serve(daemon.clone(), listener).await?;
    short_circuit::serve(&daemon);
    writeln!(std::io::stdout(), "listening on {}", server.url)?;
    let fenced = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => server.reload(),
            error = daemon.meta.fenced() => break Some(error),
        }
    };
    log::info!("stopping");
    daemon.stopping.cancel();
    server.stop().await?;
    daemon.stop().await;
    fenced.map_or(Ok(()), Err)
}
