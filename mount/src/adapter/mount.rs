//! Mounting, serving, unmounting.

use std::io;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use tokio::runtime::Handle;

use super::Adapter;
use super::kernel::FuseKernel;
use crate::fs::Fs;
use crate::fs::kernel::Kernel;

/// Threads that take in the kernel's calls; what has to wait does so in tasks.
const THREADS: usize = 4;

/// How the kernel is to mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSettings {
    /// What the mount table shows as the source.
    pub source: String,
    /// Nothing is changed.
    pub read_only: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// Nothing is executed.
    pub no_exec: bool,
    /// The mount table says that reading changes no atime.
    pub no_atime: bool,
    /// Set-user-id counts.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Other users may use the mount.
    pub allow_other: bool,
}

impl MountSettings {
    fn config(&self) -> Config {
        let either = |which, yes, no| if which { yes } else { no };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(self.source.clone()),
            // Named so because fuser drops its own `Subtype` when it mounts without fusermount3.
            MountOption::CUSTOM("subtype=tandemfs".to_owned()),
            MountOption::DefaultPermissions,
            either(self.read_only, MountOption::RO, MountOption::RW),
            either(self.suid, MountOption::Suid, MountOption::NoSuid),
            either(self.dev, MountOption::Dev, MountOption::NoDev),
            either(self.no_exec, MountOption::NoExec, MountOption::Exec),
            either(self.no_atime, MountOption::NoAtime, MountOption::Atime),
            either(self.sync, MountOption::Sync, MountOption::Async),
        ];
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        config
    }
}

/// A mount that waits to be served.
pub struct Mount {
    session: Session<Adapter>,
}

impl Mount {
    /// Mounts at a directory. The kernel's caches are kept right from now on.
    ///
    /// # Errors
    /// The system's.
    pub fn new(
        fs: &Arc<Fs>,
        runtime: &Handle,
        directory: &Path,
        settings: &MountSettings,
    ) -> io::Result<Self> {
        let adapter = Adapter::new(Arc::clone(fs), runtime.clone());
        let (epochs, numbers) = (adapter.epochs.clone(), adapter.numbers);
        let session = Session::new(adapter, directory, &settings.config())?;
        let kernel: Arc<dyn Kernel> = Arc::new(FuseKernel::new(&session, epochs, numbers)?);
        let _runtime = runtime.enter();
        fs.start(kernel);
        Ok(Self { session })
    }

    /// What unmounts it while it is being served.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(self.session.unmount_callable())
    }

    /// Serves until it is unmounted.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

/// See [`Mount::unmounter`].
#[derive(Debug)]
pub struct Unmounter(SessionUnmounter);

impl Unmounter {
    /// Unmounts.
    ///
    /// # Errors
    /// The system's, when the mount is in use.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}
