//! Logging in and out, passwords, tokens.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use serde_json::json;
use tandemfs::api::users::{ChangePassword, Login, NewToken, Role, SigningKey, Token, User};
use tandemfs::client::{Client, Credentials};
use tandemfs::credentials::{StoredToken, TokenStore};
use tandemfs::{Error, ErrorKind, Result, config};

use super::arguments::{Keys, PasswordSource};
use super::failure::Outcome;
use super::{Context, output, password};

/// The longest name that a token may have.
const TOKEN_NAME_MAX: usize = 64;

/// `tandem login`
pub(super) async fn login(context: &Context, username: Option<String>, source: PasswordSource) -> Outcome {
    let username = match username {
        Some(username) => username,
        None => ask_username()?,
    };
    let file = source.password_file.as_deref();
    let password =
        password(file, "TANDEM_PASSWORD", &format!("Password of {}: ", output::escape(&username)), false)?;
    let stored = store_token(context, &username, password).await.map_err(|error| match error.kind() {
        // That one should log in first is known.
        ErrorKind::Unauthenticated => Error::forbidden(error.subject()),
        _ => error,
    })?;
    let url = context.client.url();
    context.show(&json!({ "url": url, "username": stored.username, "token_id": stored.token_id }), |_| {
        format!("{} is logged in at {url}", output::escape(&stored.username))
    })
}

/// Logs in, gets a token that outlives the login, and keeps it.
async fn store_token(context: &Context, username: &str, password: String) -> Result<StoredToken> {
    let store = TokenStore::of_user()?;
    // Before anything is made: is there a place to keep it?
    let stored = store.get(context.client.url())?;
    let reply = context.client.login(&Login { username: username.to_owned(), password }).await?;
    let client = context.client_as(Credentials::Token(reply.token))?;
    let tokens = client.list_tokens(None).await?.tokens;
    let counts = |stored: &StoredToken| {
        stored.username == reply.user.username && tokens.iter().any(|token| token.token_id == stored.token_id)
    };
    if let Some(stored) = stored.filter(counts) {
        // Mounts go on with it.
        return Ok(stored);
    }
    let name = token_name();
    for old in tokens.iter().filter(|token| token.name == name) {
        revoke_if_there(&client, &old.token_id).await?;
    }
    let created = client.create_token(&NewToken { name, expires_in_days: None }).await?;
    let stored =
        StoredToken { username: reply.user.username, token_id: created.info.token_id, token: created.token };
    store.set(context.client.url(), stored.clone())?;
    Ok(stored)
}

/// `tandem logout`
pub(super) async fn logout(context: &Context) -> Outcome {
    let (store, url) = (TokenStore::of_user()?, context.client.url());
    let Some(stored) = store.get(url)? else {
        return Err(Error::unauthenticated(format!("there is no login for {url}")).into());
    };
    let client = context.client_as(Credentials::Token(stored.token))?;
    match revoke_if_there(&client, &stored.token_id).await {
        // It does not work any more, which is what was wanted.
        Err(error) if error.kind() != ErrorKind::Unauthenticated => return Err(error.into()),
        _ => {}
    }
    store.remove(url)?;
    context.show(&json!({ "url": url, "username": stored.username }), |_| {
        format!("{} is logged out at {url}", output::escape(&stored.username))
    })
}

async fn revoke_if_there(client: &Client, token_id: &str) -> Result<()> {
    match client.revoke_token(token_id, None).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// `tandem whoami`
pub(super) async fn whoami(context: &Context) -> Outcome {
    let user: User = context.client.me().await?;
    context.show(&user, |user| match user.role {
        Role::Admin => format!("{} (admin)", output::escape(&user.username)),
        Role::User => output::escape(&user.username).into_owned(),
    })
}

/// `tandem passwd`
pub(super) async fn change_password(
    context: &Context,
    current: Option<PathBuf>,
    new: Option<PathBuf>,
) -> Outcome {
    let user = context.client.me().await?;
    let current = password(current.as_deref(), "TANDEM_PASSWORD", "Password in force: ", false)?;
    let new = password(new.as_deref(), "TANDEM_NEW_PASSWORD", "New password: ", true)?;
    let url = context.client.url();
    let stored = TokenStore::of_user()?.get(url)?.is_some_and(|stored| stored.username == user.username);
    context.client.change_password(&ChangePassword { current, new: new.clone() }).await?;
    // The change has ended the stored token as well.
    if stored {
        store_token(context, &user.username, new).await?;
    }
    context.show(&json!({ "username": user.username }), |_| "The password is changed.".to_owned())
}

/// `tandem tokens list`
pub(super) async fn list_tokens(context: &Context, user: Option<&str>) -> Outcome {
    let tokens = context.client.list_tokens(user).await?;
    context.show(&tokens, |list| {
        let row = |token: &Token| {
            vec![
                token.token_id.clone(),
                output::seconds_of(&token.created),
                token.expires.as_deref().map_or_else(|| "never".to_owned(), output::seconds_of),
                token.last_used.as_deref().map_or_else(|| "never".to_owned(), output::seconds_of),
                token.name.clone(),
            ]
        };
        output::table(
            &["ID", "CREATED", "EXPIRES", "USED", "NAME"],
            &list.tokens.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

/// `tandem tokens create`
pub(super) async fn create_token(context: &Context, name: String, expires_in_days: Option<u32>) -> Outcome {
    let created = context.client.create_token(&NewToken { name, expires_in_days }).await?;
    context.show(&created, |created| created.token.clone())
}

/// `tandem admin keys`
pub(super) async fn signing_keys(context: &Context, command: Keys) -> Outcome {
    let list = match command {
        Keys::List => context.client.signing_keys().await?,
        Keys::Rotate => context.client.rotate_signing_keys().await?,
        Keys::Drop { key_id } => return Ok(context.client.drop_signing_key(&key_id).await?),
    };
    context.show(&list, |list| {
        let row = |key: &SigningKey| {
            let replaced = key.replaced.as_deref().map_or_else(|| "signs".to_owned(), output::seconds_of);
            vec![key.key_id.clone(), replaced]
        };
        output::table(&["KEY", "REPLACED"], &list.keys.iter().map(row).collect::<Vec<_>>())
    })
}

fn ask_username() -> Outcome<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(super::Failure::Usage("say who logs in: tandem login -u NAME".to_owned()));
    }
    let mut line = String::new();
    let ask = || {
        let mut err = std::io::stderr();
        err.write_all(b"User: ").and_then(|()| err.flush())
    };
    ask().and_then(|()| stdin.lock().read_line(&mut line)).map_err(Error::from)?;
    Ok(config::without_line_end(line))
}

/// What the stored token is called in the list of tokens: it says where it is.
fn token_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|letter| letter.is_ascii_graphic()).collect();
    let host = if host.is_empty() { "an unnamed host" } else { &host };
    format!("tandem on {host}").chars().take(TOKEN_NAME_MAX).collect()
}
