//! Where settings come from: the defaults, a TOML file, the environment (`TANDEM_*`), the command line; the later wins.
//!
//! The options and their help are made from [`Settings`] itself, so a new setting needs no other line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};
use tandemfs::config::{parse_size, read_secret};
use tandemfs::{Error, Result};
use utoipa::PartialSchema as _;
use utoipa::openapi::{RefOr, Schema};

use crate::settings::Settings;

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings, checked.
    pub settings: Settings,
    /// The password that the first admin gets at the first start, if one was given.
    pub first_password: Option<FirstPassword>,
}

/// A password that is not to be seen.
#[derive(Clone)]
pub struct FirstPassword(pub String);

impl std::fmt::Debug for FirstPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FirstPassword(secret)")
    }
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// `Invalid` for what makes no sense, with the name of the setting.
    pub fn load(matches: &ArgMatches, environment: &BTreeMap<String, OsString>) -> Result<Self> {
        let variable = |name: &str| environment.get(&format!("TANDEM_{}", name.to_uppercase())).cloned();
        let mut values = defaults()?;
        let file = matches.get_one::<OsString>("config").cloned().or_else(|| variable("config"));
        if let Some(file) = file {
            for (name, value) in read_file(Path::new(&file))? {
                if !values.contains_key(&name) {
                    return Err(Error::invalid(format!("{}: there is no setting {name:?}", file.display())));
                }
                values.insert(name, value);
            }
        }
        let defaults = defaults()?;
        for (name, default) in &defaults {
            let given = if default.is_boolean() {
                matches.get_flag(name).then(|| OsString::from("true")).or_else(|| variable(name))
            } else {
                matches.get_one::<OsString>(name).cloned().or_else(|| variable(name))
            };
            if let Some(text) = given {
                values.insert(name.clone(), parse(name, default, &text)?);
            }
        }
        let settings: Settings = serde_json::from_value(Value::Object(values))
            .map_err(|error| Error::invalid(format!("the settings: {error}")))?;
        settings.check()?;
        let first_password = match (variable("admin_password"), &settings.admin_password_file) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("give admin_password_file or TANDEM_ADMIN_PASSWORD, not both"));
            }
            (Some(password), None) => Some(
                password.into_string().map_err(|_| Error::invalid("TANDEM_ADMIN_PASSWORD is not UTF-8"))?,
            ),
            (None, Some(file)) => Some(read_secret(file)?),
            (None, None) => None,
        };
        Ok(Self { settings, first_password: first_password.map(FirstPassword) })
    }
}

/// The command line of the daemon.
pub fn command() -> Command {
    let command = Command::new("tandemd")
        .about("The TandemFS storage daemon")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Each option can also be given in the environment, --some-option as TANDEM_SOME_OPTION, and in the TOML file, as \
             some_option. The command line wins over the environment, and that over the file.",
        )
        .arg(Arg::new("command").value_parser(["serve"]).hide_possible_values(true).help("serve: what is done anyway"))
        .subcommand(crate::restore::command())
        .subcommand(with_settings(crate::fsck::command::command()))
        .args_conflicts_with_subcommands(true);
    with_settings(command)
}

/// A command that takes the settings as options.
fn with_settings(command: Command) -> Command {
    let mut command = command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(OsString))
            .help("A TOML file with settings"),
    );
    let help = help();
    for (name, default) in defaults().unwrap_or_default() {
        let text = help.get(&name).cloned().unwrap_or_default();
        let arg = Arg::new(name.clone()).long(name.replace('_', "-"));
        let arg = match &default {
            Value::Bool(_) => arg.action(ArgAction::SetTrue).help(text),
            Value::Null => arg.help(text),
            Value::String(value) => arg.help(format!("{text} [default: {value}]")),
            value => arg.help(format!("{text} [default: {value}]")),
        };
        command = command.arg(match &default {
            Value::Bool(_) => arg,
            Value::Number(_) => arg.value_name("N").value_parser(clap::value_parser!(OsString)),
            _ => arg.value_name("VALUE").value_parser(clap::value_parser!(OsString)),
        });
    }
    command
}

fn defaults() -> Result<Map<String, Value>> {
    match serde_json::to_value(Settings::default()) {
        Ok(Value::Object(values)) => Ok(values),
        _ => Err(Error::internal("the default settings")),
    }
}

/// The comments of the settings.
fn help() -> BTreeMap<String, String> {
    let RefOr::T(Schema::Object(settings)) = Settings::schema() else { return BTreeMap::new() };
    let mut help = BTreeMap::new();
    for (name, schema) in settings.properties {
        let description = match schema {
            RefOr::T(Schema::Object(field)) => field.description,
            _ => None,
        };
        help.insert(name, description.unwrap_or_default().trim_end_matches('.').to_owned());
    }
    help
}

fn read_file(path: &Path) -> Result<Map<String, Value>> {
    let fail = |error: &dyn std::fmt::Display| Error::invalid(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| fail(&error))?;
    match serde_json::to_value(table).map_err(|error| fail(&error))? {
        Value::Object(values) => Ok(values),
        _ => Err(fail(&"not a table")),
    }
}

/// What a text means for a setting that has such a default.
fn parse(name: &str, default: &Value, text: &OsString) -> Result<Value> {
    let bad = |why: &str| Error::invalid(format!("{name}: {why}"));
    if name.ends_with("_file") || ["data", "tls_cert", "tls_key"].contains(&name) {
        let path = PathBuf::from(text);
        return serde_json::to_value(path).map_err(|_| bad("the path is not UTF-8"));
    }
    let text = text.to_str().ok_or_else(|| bad("not UTF-8"))?;
    match default {
        Value::Bool(_) => match text {
            "1" | "true" | "yes" => Ok(Value::Bool(true)),
            "" | "0" | "false" | "no" => Ok(Value::Bool(false)),
            _ => Err(bad("true or false")),
        },
        // What has no default is a quota, a number as well.
        Value::Number(_) | Value::Null if name.contains("bytes") || name.ends_with("size") => {
            parse_size(text).map(Value::from).map_err(|error| bad(error.subject()))
        }
        Value::Number(_) | Value::Null => {
            text.parse::<u64>().map(Value::from).map_err(|_| bad("not a number"))
        }
        _ => Ok(Value::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Options, command, help};
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    fn load(arguments: &[&str], environment: &[(&str, &str)]) -> tandemfs::Result<Options> {
        let matches = command().get_matches_from([&["tandemd"], arguments].concat());
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Options::load(&matches, &environment)
    }

    #[test]
    fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tandemd.toml");
        std::fs::write(&file, "nodes = 5\nreplicas = 3\nlisten = \"127.0.0.1:1\"\n").unwrap();
        let file = file.to_str().unwrap();
        let environment = [("TANDEM_REPLICAS", "4"), ("TANDEM_NODES", "6"), ("TANDEM_QUOTA_BYTES", "2GiB")];
        let settings =
            load(&["serve", "--config", file, "--nodes", "7", "--insecure"], &environment).unwrap().settings;
        assert_eq!((settings.nodes, settings.replicas, settings.listen.port()), (7, 4, 1));
        assert_eq!(settings.quota_bytes, Some(2 << 30));
        assert!(settings.insecure);
        std::fs::write(file, "node = 5\n").unwrap();
        assert!(load(&["--config", file], &[]).unwrap_err().subject().contains("\"node\""));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for bad in [
            vec!["--replicas", "0"],
            vec!["--min-replicas", "3"],
            vec!["--min-replicas", "0"],
            vec!["--nodes", "1"],
            vec!["--token-ttl-s", "901"],
            vec!["--token-ttl-s", "0"],
            vec!["--listen", "nowhere"],
            vec!["--tls-cert", "x"],
            vec!["--tls-check-interval-s", "0"],
            vec!["--max-logins", "0"],
            vec!["--nodes", "many"],
        ] {
            assert!(load(&bad, &[]).is_err(), "{bad:?}");
        }
        assert!(load(&[], &[("TANDEM_INSECURE", "maybe")]).is_err());
        assert!(load(&[], &[]).is_ok());
    }

    #[test]
    fn the_first_password_comes_from_one_place_and_is_not_shown() {
        let options = load(&[], &[("TANDEM_ADMIN_PASSWORD", "a long password")]).unwrap();
        assert!(!format!("{options:?}").contains("a long password"));
        assert_eq!(options.first_password.unwrap().0, "a long password");
        assert!(load(&["--admin-password-file", "/nonexistent"], &[]).is_err());
    }

    #[test]
    fn every_setting_has_help() {
        let empty: Vec<_> =
            help().into_iter().filter(|(_, text)| text.is_empty()).map(|(name, _)| name).collect();
        assert!(empty.is_empty(), "{empty:?}");
        let text = command().render_long_help().to_string();
        assert!(text.contains("--min-replicas") && text.contains("[default: 1]"), "{text}");
        let _: BTreeMap<String, String> = help();
    }
}
