//! How a program comes to its credentials: from the environment, from a file, or from the tokens that `tandem login`
//! has stored for each URL.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::{self, Credentials};
use crate::config::{config_directory, read_secret, write_secret};
use crate::{Error, ErrorKind, Result};

/// A token that `tandem login` got from a daemon.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// Whose it is.
    pub username: String,
    /// Names it when it is revoked.
    pub token_id: String,
    /// The token itself.
    pub token: String,
}

/// The file of stored tokens, one for each daemon's URL: `credentials.toml`, mode 0600, under the user's settings.
#[derive(Clone, Debug)]
pub struct TokenStore {
    path: PathBuf,
}

impl TokenStore {
    /// The user's store.
    ///
    /// # Errors
    /// `Invalid` when the environment does not say where the user's settings lie.
    pub fn of_user() -> Result<Self> {
        Ok(Self::at(config_directory()?.join("credentials.toml")))
    }

    /// The store in a file.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The token for a URL.
    ///
    /// # Errors
    /// `Forbidden` when others may read the file, `Invalid` when it is not a store or the URL is none.
    pub fn get(&self, url: &str) -> Result<Option<StoredToken>> {
        Ok(self.read()?.remove(&client::normal_url(url)?))
    }

    /// Keeps a token for a URL, in place of the one before.
    ///
    /// # Errors
    /// As [`TokenStore::get`], and those of writing.
    pub fn set(&self, url: &str, token: StoredToken) -> Result<()> {
        let url = client::normal_url(url)?;
        self.change(|tokens| {
            tokens.insert(url, token);
        })
    }

    /// Forgets the token for a URL.
    ///
    /// # Errors
    /// As [`TokenStore::set`].
    pub fn remove(&self, url: &str) -> Result<()> {
        let url = client::normal_url(url)?;
        self.change(|tokens| {
            tokens.remove(&url);
        })
    }

    fn read(&self) -> Result<BTreeMap<String, StoredToken>> {
        match read_secret(&self.path) {
            Ok(text) => toml::from_str(&text)
                // The parser's message quotes the line, which may hold a token.
                .map_err(|_| Error::invalid(format!("{} is not a file of tokens", self.path.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, StoredToken>)) -> Result<()> {
        if let Some(directory) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // A file of its own: the store itself is replaced with each change. Unlocked when closed.
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.with_extension("lock"))?;
        lock.lock()?;
        let mut tokens = self.read()?;
        change(&mut tokens);
        let text =
            toml::to_string(&tokens).map_err(|error| Error::internal("writing tokens").because(error))?;
        write_secret(&self.path, text.as_bytes())
    }
}

/// The credentials for a daemon, as the user's environment has them: `TANDEM_TOKEN`; `TANDEM_USER` with
/// `TANDEM_PASSWORD`; each of them also as `…_FILE`, which names a file of mode 0600; then what `tandem login` has
/// stored for the URL. [`Credentials::None`] if there is nothing.
///
/// # Errors
/// `Invalid` when a user is given without a password, `Forbidden` when others may read one of the files.
pub fn find(url: &str) -> Result<Credentials> {
    match from_variables(&|name| std::env::var(name).ok())? {
        Some(credentials) => Ok(credentials),
        None => Ok(match TokenStore::of_user()?.get(url)? {
            Some(stored) => Credentials::Token(stored.token),
            None => Credentials::None,
        }),
    }
}

/// Credentials in a TOML file of mode 0600: `token`, or `username` and `password`.
///
/// # Errors
/// `Forbidden` when others may read it, `Invalid` when it holds something else.
pub fn from_file(path: &Path) -> Result<Credentials> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        token: Option<String>,
        username: Option<String>,
        password: Option<String>,
    }
    match toml::from_str(&read_secret(path)?) {
        Ok(File { token: Some(token), username: None, password: None }) => Ok(Credentials::Token(token)),
        Ok(File { token: None, username: Some(username), password: Some(password) }) => {
            Ok(Credentials::Password { username, password })
        }
        _ => Err(Error::invalid(format!("{} holds neither token nor username and password", path.display()))),
    }
}

/// A value from a variable, or from the file that the variable `…_FILE` names.
///
/// # Errors
/// Those of [`read_secret`].
pub fn secret_variable(name: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>> {
    match (variable(name), variable(&format!("{name}_FILE"))) {
        (Some(value), _) if !value.is_empty() => Ok(Some(value)),
        (_, Some(path)) if !path.is_empty() => read_secret(Path::new(&path)).map(Some),
        _ => Ok(None),
    }
}

fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Credentials>> {
    if let Some(token) = secret_variable("TANDEM_TOKEN", variable)? {
        return Ok(Some(Credentials::Token(token)));
    }
    let Some(username) = secret_variable("TANDEM_USER", variable)? else { return Ok(None) };
    match secret_variable("TANDEM_PASSWORD", variable)? {
        Some(password) => Ok(Some(Credentials::Password { username, password })),
        None => Err(Error::invalid("TANDEM_USER is set without TANDEM_PASSWORD")),
    }
}

#[cfg(test)]
mod tests {
    use super::{StoredToken, TokenStore, from_file, from_variables};
    use crate::ErrorKind;
    use crate::client::Credentials;
    use crate::config::write_secret;
    use std::os::unix::fs::PermissionsExt;

    fn token(name: &str) -> StoredToken {
        StoredToken { username: name.into(), token_id: format!("{name}-id"), token: format!("{name}-secret") }
    }

    #[test]
    fn tokens_are_kept_for_each_url() {
        let directory = tempfile::tempdir().unwrap();
        let store = TokenStore::at(directory.path().join("tandemfs/credentials.toml"));
        assert!(store.get("http://a:1").unwrap().is_none());
        store.set("http://a:1", token("alice")).unwrap();
        store.set("https://b/", token("bob")).unwrap();
        store.set("http://a:1/", token("ann")).unwrap();
        assert!(store.get("http://A:1").unwrap() == Some(token("ann")), "one spelling for one daemon");
        assert!(store.get("https://b:443").unwrap() == Some(token("bob")));
        store.remove("http://a:1").unwrap();
        assert!(store.get("http://a:1").unwrap().is_none());
        assert!(store.get("https://b").unwrap().is_some());
    }

    #[test]
    fn a_store_that_others_may_read_or_that_is_damaged_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = TokenStore::at(directory.path().join("credentials.toml"));
        store.set("http://a", token("alice")).unwrap();
        std::fs::set_permissions(store.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(store.get("http://a").err().unwrap().kind(), ErrorKind::Forbidden);
        assert_eq!(store.set("http://a", token("bob")).unwrap_err().kind(), ErrorKind::Forbidden);
        write_secret(store.path(), b"[\"http://a\"]\ntoken = \"very-secret").unwrap();
        let error = store.get("http://a").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!format!("{error} {error:?}").contains("very-secret"));
    }

    #[test]
    fn many_writers_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = TokenStore::at(directory.path().join("credentials.toml"));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let store = &store;
                scope.spawn(move || store.set(&format!("http://host{number}"), token("x")).unwrap());
            }
        });
        for number in 0..8 {
            assert!(store.get(&format!("http://host{number}")).unwrap().is_some(), "{number}");
        }
    }

    #[test]
    fn variables_and_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write_secret(&path, b"from-file\n").unwrap();
        let path = path.to_str().unwrap().to_owned();
        let with = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> =
                pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
            from_variables(&move |name| {
                pairs.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone())
            })
        };
        assert!(with(&[]).unwrap().is_none());
        assert!(
            matches!(with(&[("TANDEM_TOKEN", "t")]).unwrap(), Some(Credentials::Token(token)) if token == "t")
        );
        assert!(
            matches!(with(&[("TANDEM_TOKEN_FILE", &path)]).unwrap(), Some(Credentials::Token(t)) if t == "from-file")
        );
        assert!(matches!(
            with(&[("TANDEM_USER", "u"), ("TANDEM_PASSWORD_FILE", &path)]).unwrap(),
            Some(Credentials::Password { password, .. }) if password == "from-file"
        ));
        assert_eq!(with(&[("TANDEM_USER", "u")]).unwrap_err().kind(), ErrorKind::Invalid);

        let file = directory.path().join("credentials");
        write_secret(&file, b"token = \"t\"\n").unwrap();
        assert!(matches!(from_file(&file).unwrap(), Credentials::Token(token) if token == "t"));
        write_secret(&file, b"username = \"u\"\npassword = \"p\"\n").unwrap();
        assert!(matches!(from_file(&file).unwrap(), Credentials::Password { .. }));
        write_secret(&file, b"username = \"u\"\n").unwrap();
        assert_eq!(from_file(&file).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
