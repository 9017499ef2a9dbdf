//! The certificate and its key: read at the start, and again when their files have changed. Open connections go on with what they
//! began with.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use tandemfs::{Error, Result};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;

/// Tells one state of a file from another: device, inode, and when it was changed last. None for a file that is not there.
type Stamp = Option<(u64, u64, i64, i64)>;

/// What the daemon shows to new connections, and where that comes from.
pub(super) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    config: RustlsConfig,
    seen: [Stamp; 2],
}

impl Certificate {
    /// Reads the files that the settings name, if they do.
    ///
    /// # Errors
    /// `Invalid` for a key that others can read, and for files that make no pair; those of reading.
    pub(super) async fn load(settings: &Settings) -> Result<Option<Self>> {
        let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) else { return Ok(None) };
        // Only the first call in a process has an effect.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seen = [stamp(cert), stamp(key)];
        let config = read(cert, key).await?;
        Ok(Some(Self { cert: cert.clone(), key: key.clone(), config, seen }))
    }

    /// What new connections are given, also after a change.
    pub(super) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// Looks for a change after each interval, and reads the files at once when `asked`, until the daemon stops.
    pub(super) async fn follow(
        mut self,
        interval: Duration,
        asked: Arc<Notify>,
        stopping: CancellationToken,
    ) {
        loop {
            let at_once = tokio::select! {
                () = sleep(interval) => false,
                () = asked.notified() => true,
                () = stopping.cancelled() => return,
            };
            // Before reading: a change meanwhile is found the next time.
            let found = [stamp(&self.cert), stamp(&self.key)];
            if at_once || found != self.seen {
                self.seen = found;
                match read(&self.cert, &self.key).await {
                    Ok(config) => {
                        self.config.reload_from_config(config.get_inner());
                        log::info!(
                            "new connections get the certificate that is now in {}",
                            self.cert.display()
                        );
                    }
                    Err(error) => log::error!("the certificate stays as it was: {error}"),
                }
            }
        }
    }
}

fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

async fn read(cert: &Path, key: &Path) -> Result<RustlsConfig> {
    let mode = std::fs::metadata(key)
        .map_err(|error| Error::invalid(format!("{}: {error}", key.display())).because(error))?
        .mode();
    if mode & 0o077 != 0 {
        return Err(Error::invalid(format!(
            "{} can be read by others (mode {:o}); it is a private key: chmod 600 it",
            key.display(),
            mode & 0o777
        )));
    }
    RustlsConfig::from_pem_chain_file(cert, key)
        .await
        .map_err(|error| Error::invalid(format!("{}, {}: {error}", cert.display(), key.display())))
}
