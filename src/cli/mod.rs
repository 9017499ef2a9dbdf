//! The command line: parse, call the client, print.

mod account;
mod admin;
mod arguments;
mod audit;
mod failure;
mod files;
mod output;
mod status;
mod transfer;
mod tree;
mod users;
mod volumes;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tandemfs::client::{Client, Credentials};
use tandemfs::{Error, Result, config, credentials};

use arguments::{Admin, Arguments, Command, Tokens};
use failure::{Failure, Outcome};

/// What every command needs.
struct Context {
    client: Client,
    ca: Option<Vec<u8>>,
    json: bool,
}

impl Context {
    /// Another client of the same daemon.
    fn client_as(&self, credentials: Credentials) -> Result<Client> {
        Client::with_ca(self.client.url(), credentials, self.ca.as_deref())
    }

    /// Prints a value: as JSON if that is wanted, else as people read it.
    fn show<T: serde::Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        if self.json { output::print_json(value) } else { output::print(&text(value)) }
    }
}

/// Runs the command that the command line says.
pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed pipe is no reason to complain.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

fn run(arguments: Arguments) -> Outcome {
    match &arguments.command {
        Command::Completions { shell } => return completions(*shell),
        Command::Man { directory } => return manual(directory),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::from)?;
    runtime.block_on(async {
        let Arguments { url, ca, json, command } = arguments;
        let ca = ca.map(std::fs::read).transpose().map_err(Error::from)?;
        let credentials = match &command {
            Command::Login { .. } => Credentials::None,
            _ => credentials::find(&url).map_err(usage_if_url)?,
        };
        let client = Client::with_ca(&url, credentials, ca.as_deref()).map_err(usage_if_url)?;
        dispatch(&Context { client, ca, json }, command).await
    })
}

async fn dispatch(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Login { username, password } => account::login(context, username, password).await,
        Command::Logout => account::logout(context).await,
        Command::Whoami => account::whoami(context).await,
        Command::Passwd { password_file, new_password_file } => {
            account::change_password(context, password_file, new_password_file).await
        }
        Command::Ls { long, path } => files::list(context, &path, long).await,
        Command::Stat { target } => files::stat(context, &target).await,
        Command::Put { paths, force } => transfer::put(context, paths, force).await,
        Command::Get { remote, local } => transfer::get(context, &remote, local).await,
        Command::Rm { recursive, force, targets } => files::remove(context, &targets, recursive, force).await,
        Command::Mkdir { parents, paths } => files::make_directories(context, &paths, parents).await,
        Command::Mv { no_clobber, old, new } => files::rename(context, &old, &new, no_clobber).await,
        Command::Status => status::status(context).await,
        Command::Storage => status::storage(context).await,
        Command::Volumes => volumes::list(context).await,
        Command::Tokens(tokens) | Command::Admin(Admin::Tokens(tokens)) => match tokens {
            Tokens::List { user } => account::list_tokens(context, user.as_deref()).await,
            Tokens::Create { name, expires_in_days } => {
                account::create_token(context, name, expires_in_days).await
            }
            Tokens::Revoke { token_id, user } => {
                Ok(context.client.revoke_token(&token_id, user.as_deref()).await?)
            }
        },
        Command::Admin(Admin::Keys(keys)) => account::signing_keys(context, keys).await,
        Command::Admin(Admin::Users(users)) => users::run(context, users).await,
        Command::Admin(Admin::Volumes(command)) => volumes::run(context, command).await,
        Command::Admin(Admin::Grants(command)) => volumes::run_grants(context, command).await,
        Command::Admin(command) => admin::run(context, command).await,
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tandem", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())
}

fn manual(directory: &std::path::Path) -> Outcome {
    let write = || {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(Arguments::command(), directory)
    };
    write().map_err(|error: std::io::Error| Failure::Failed(Error::from(error)))
}

/// A URL that is none is an error of the command line.
fn usage_if_url(error: Error) -> Failure {
    match error.kind() {
        tandemfs::ErrorKind::Invalid => Failure::Usage(error.subject().to_owned()),
        _ => Failure::Failed(error),
    }
}

/// A password: from a file or standard input, from a variable, or asked for on the terminal.
fn password(file: Option<&std::path::Path>, variable: &str, prompt: &str, twice: bool) -> Outcome<String> {
    match file {
        Some(path) if path == std::path::Path::new("-") => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(Error::from)?;
            return Ok(config::without_line_end(line));
        }
        Some(path) => return Ok(config::read_secret(path)?),
        None => {}
    }
    if let Some(password) = credentials::secret_variable(variable, &|name| std::env::var(name).ok())? {
        return Ok(password);
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt).map_err(|error| {
            let what = format!("no terminal to ask for a password; give --password-file or {variable}");
            Failure::Failed(Error::invalid(what).because(error))
        })
    };
    let answer = ask(prompt)?;
    if twice && ask("Once more: ")? != answer {
        return Err(Error::invalid("the two are not the same").into());
    }
    Ok(answer)
}
