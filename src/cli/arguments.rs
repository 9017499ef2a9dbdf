//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tandemfs::api::admin::FailMode;
use tandemfs::api::users::Role;
use tandemfs::api::volumes::Access;
use tandemfs::id::{JobId, NodeId};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line makes no sense
  3  not logged in, or not allowed
  4  there is no such thing
  5  the daemon cannot be reached or cannot do it at the moment
  6  the quota is used up or the nodes are full
  130  interrupted

Environment:
  TANDEM_URL, TANDEM_CA             as --url and --ca
  TANDEM_TOKEN                      a token, in place of the stored one
  TANDEM_USER with TANDEM_PASSWORD  a login, in place of the stored token
  Each of the secrets also as ..._FILE, which names a file of mode 0600.";

/// Work with a TandemFS daemon.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The daemon.
    #[arg(
        long,
        global = true,
        env = "TANDEM_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:5001"
    )]
    pub(crate) url: String,
    /// For https, trust only the certificate authorities in this PEM file.
    #[arg(long, global = true, env = "TANDEM_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Print JSON, as the API has it.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in: get a token and keep it for this URL.
    Login {
        /// The user; asked for if not given.
        #[arg(short, long = "user", value_name = "NAME")]
        username: Option<String>,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Revoke the stored token and forget it.
    Logout,
    /// Say who is logged in.
    Whoami,
    /// Change the own password. Ends all tokens but the one that is stored here, which is made anew.
    Passwd {
        /// Read the password in force from a file, or from standard input for `-`.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Read the new password from a file, or from standard input for `-`.
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// List a directory.
    Ls {
        /// Kind, permissions, size, time and id as well.
        #[arg(short)]
        long: bool,
        /// A path in the home volume.
        #[arg(default_value = "/")]
        path: String,
    },
    /// Show a file with the places of its blocks, or a directory.
    Stat {
        /// A path or a file's id.
        #[arg(value_name = "PATH|ID")]
        target: String,
    },
    /// Upload files.
    #[command(
        after_help = "With one argument, the file is stored in the root under its name. Else the last argument says where: a \
        directory (`/` at the end, or one that exists), or the path of the new file."
    )]
    Put {
        /// Local files, `-` for standard input; then the path in the home volume.
        #[arg(required = true, value_name = "LOCAL... [REMOTE]")]
        paths: Vec<PathBuf>,
        /// Replace a file that is there, all at once.
        #[arg(short, long)]
        force: bool,
    },
    /// Download a file. The local file appears when it is whole, and checked where its SHA-256 is known.
    Get {
        /// A path or a file's id.
        #[arg(value_name = "PATH|ID")]
        remote: String,
        /// A file or a directory, `-` for standard output; the same name in this directory if not given.
        local: Option<PathBuf>,
    },
    /// Remove files and empty directories.
    Rm {
        /// Directories with all that is in them.
        #[arg(short, long)]
        recursive: bool,
        /// Say nothing about what is not there.
        #[arg(short, long)]
        force: bool,
        /// Paths or files' ids.
        #[arg(required = true, value_name = "PATH|ID")]
        targets: Vec<String>,
    },
    /// Make a directory.
    Mkdir {
        /// With those above it, and no error if it is there.
        #[arg(short, long)]
        parents: bool,
        /// Paths in the home volume.
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Rename a file or a directory.
    Mv {
        /// Do not replace what is there.
        #[arg(short, long)]
        no_clobber: bool,
        /// What is to be renamed.
        old: String,
        /// The new path, or a directory that exists.
        new: String,
    },
    /// Say whether all is well.
    Status,
    /// Say what is used and what is left.
    Storage,
    /// List the shared volumes that you are granted.
    Volumes,
    /// Your long-lived tokens.
    #[command(subcommand)]
    Tokens(Tokens),
    /// Administer the system.
    #[command(subcommand)]
    Admin(Admin),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write manual pages into a directory.
    Man {
        /// The directory; made if there is none.
        directory: PathBuf,
    },
}

/// Where a password comes from.
#[derive(Args, Debug, Default)]
pub(crate) struct PasswordSource {
    /// Read the password from a file, or from standard input for `-`. Else from TANDEM_PASSWORD, or asked for.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

/// `tandem tokens`
#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// List them.
    List {
        /// Another user's (admins).
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Make one and print it, this one time.
    Create {
        /// What it is for.
        name: String,
        /// Days after which it expires; never if not given.
        #[arg(long, value_name = "DAYS")]
        expires_in_days: Option<u32>,
    },
    /// End one.
    Revoke {
        /// From `tandem tokens list`.
        token_id: String,
        /// Another user's (admins).
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
}

/// `tandem admin`
#[derive(Debug, Subcommand)]
pub(crate) enum Admin {
    /// List the storage nodes.
    Nodes,
    /// Make a node fail: from now on it is as if it were gone.
    FailNode {
        /// The node's number.
        node: NodeId,
        /// How.
        #[arg(long, value_enum, default_value = "offline")]
        mode: Mode,
    },
    /// Bring a node back and copy to it what it lacks.
    RepairNode {
        /// The node's number.
        node: NodeId,
        /// Start it and do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// The users.
    #[command(subcommand)]
    Users(Users),
    /// The shared volumes.
    #[command(subcommand)]
    Volumes(Volumes),
    /// Who may use the shared volumes.
    #[command(subcommand)]
    Grants(Grants),
    /// Tokens: as `tandem tokens`, for all users by --user.
    #[command(subcommand)]
    Tokens(Tokens),
    /// The keys that sign the tokens of logins.
    #[command(subcommand)]
    Keys(Keys),
    /// Configuration, totals, capacity.
    System,
    /// List background jobs.
    Jobs {
        /// Only this one.
        job: Option<JobId>,
        /// End it.
        #[arg(long, requires = "job")]
        cancel: bool,
    },
    /// List the mounts' sessions.
    Sessions,
    /// Show the audit log: who did what.
    Audit {
        /// So many of the newest entries.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Check the whole chain instead, and say what is missing and what was changed.
        #[arg(long, conflicts_with = "limit")]
        verify: bool,
    },
    /// Read and check everything that a node holds, or all nodes.
    Scrub {
        /// The node's number; all if not given.
        node: Option<NodeId>,
    },
    /// Remove blocks that nothing has named for the grace period.
    #[command(visible_alias = "collect")]
    Gc {
        /// Remove nothing, and say what would be removed and what compaction would win.
        #[arg(long)]
        dry_run: bool,
        /// Start it and do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// Pack small blocks, and rewrite packs of which less than half is in use and files that lie in very many pieces.
    Compact {
        /// Start it and do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// Check whether trees, counts and copies fit together; exit code 1 if faults are left.
    Fsck {
        /// Mend counts, links and copies. For the rest, stop the daemon and run tandemd fsck --repair.
        #[arg(long)]
        repair: bool,
        /// Start it and do not wait.
        #[arg(long)]
        no_wait: bool,
    },
}

/// `tandem admin keys`
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// List those that count, the one that signs first.
    List,
    /// Have a new key sign from now on. Logins of before stay valid until they expire.
    Rotate,
    /// Drop a key: all logins that it has signed end at once.
    Drop {
        /// From `tandem admin keys list`.
        key_id: String,
    },
}

/// `tandem admin users`
#[derive(Debug, Subcommand)]
pub(crate) enum Users {
    /// List them.
    List,
    /// Make one. The password is asked for, or comes from --password-file or TANDEM_NEW_PASSWORD.
    Add {
        /// The name.
        username: String,
        #[command(flatten)]
        password: PasswordSource,
        #[command(flatten)]
        fields: UserFields,
    },
    /// Change role, quota or password.
    Change {
        /// The name.
        username: String,
        /// Set a new password: from --password-file, TANDEM_NEW_PASSWORD, or asked for.
        #[arg(long)]
        password: bool,
        #[command(flatten)]
        source: PasswordSource,
        #[command(flatten)]
        fields: UserFields,
    },
    /// Keep one from logging in; tokens and mounts end.
    Disable {
        /// The name.
        username: String,
    },
    /// Let one log in again.
    Enable {
        /// The name.
        username: String,
    },
    /// Remove one, with all files.
    Delete {
        /// The name.
        username: String,
    },
}

/// What a user has.
#[derive(Args, Debug)]
pub(crate) struct UserFields {
    /// What the user may do.
    #[arg(long, value_enum)]
    pub(crate) role: Option<RoleName>,
    #[command(flatten)]
    pub(crate) quota: Quota,
}

/// What a volume may take: a user's home volume or a shared one.
#[derive(Args, Debug)]
pub(crate) struct Quota {
    /// Bytes that the volume may take, such as 10G.
    #[arg(long, value_name = "SIZE", value_parser = tandemfs::config::parse_size)]
    pub(crate) quota_bytes: Option<u64>,
    /// Files, directories and others that the volume may have.
    #[arg(long, value_name = "COUNT")]
    pub(crate) quota_files: Option<u64>,
}

/// `tandem admin volumes`
#[derive(Debug, Subcommand)]
pub(crate) enum Volumes {
    /// List them.
    List,
    /// Make one. Nobody may use it before `tandem admin grants set`.
    Add {
        /// The name.
        name: String,
        #[command(flatten)]
        quota: Quota,
    },
    /// Change the quota.
    Change {
        /// The name.
        name: String,
        #[command(flatten)]
        quota: Quota,
    },
    /// Remove one, with all files.
    Delete {
        /// The name.
        name: String,
    },
}

/// `tandem admin grants`
#[derive(Debug, Subcommand)]
pub(crate) enum Grants {
    /// List who may use a volume.
    List {
        /// The volume's name.
        volume: String,
    },
    /// Let a user use a volume. Less than before ends the user's mounts of it.
    Set {
        /// The volume's name.
        volume: String,
        /// The user's name.
        username: String,
        /// What for.
        #[arg(value_enum)]
        access: AccessName,
    },
    /// Let a user use a volume no more; the user's mounts of it end.
    Revoke {
        /// The volume's name.
        volume: String,
        /// The user's name.
        username: String,
    },
}

/// What a grant allows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AccessName {
    /// Read.
    Read,
    /// Read and change.
    Write,
}

impl From<AccessName> for Access {
    fn from(access: AccessName) -> Self {
        match access {
            AccessName::Read => Self::Read,
            AccessName::Write => Self::Write,
        }
    }
}

/// How a node fails.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// It does not answer any more.
    Offline,
    /// Its data is gone, too.
    Wipe,
    /// Bits of its data are flipped.
    Corrupt,
}

impl From<Mode> for FailMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Offline => Self::Offline,
            Mode::Wipe => Self::Wipe,
            Mode::Corrupt => Self::Corrupt,
        }
    }
}

/// What a user may do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleName {
    /// Everything, but not read others' files.
    Admin,
    /// Use the own files.
    User,
}

impl From<RoleName> for Role {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Admin => Self::Admin,
            RoleName::User => Self::User,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Command};
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_for_all_may_stand_anywhere() {
        let arguments =
            Arguments::try_parse_from(["tandem", "ls", "--json", "-l", "--url", "http://h", "/a"]).unwrap();
        assert!(arguments.json);
        assert_eq!(arguments.url, "http://h");
        assert!(matches!(arguments.command, Command::Ls { long: true, path } if path == "/a"));
    }
}
