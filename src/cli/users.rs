//! `tandem admin users`

use tandemfs::api::users::{ChangeUser, Register, Role, User, UserPage};

use super::arguments::Users;
use super::failure::{Failure, Outcome};
use super::{Context, output, password};

/// Runs one of its commands.
pub(super) async fn run(context: &Context, command: Users) -> Outcome {
    let client = &context.client;
    match command {
        Users::List => list(context).await,
        Users::Add { username, password: source, fields } => {
            let prompt = format!("Password of {}: ", output::escape(&username));
            let password = password(source.password_file.as_deref(), "TANDEM_NEW_PASSWORD", &prompt, true)?;
            let user = Register {
                username,
                password,
                role: fields.role.map(Role::from).unwrap_or_default(),
                quota_bytes: fields.quota.quota_bytes,
                quota_files: fields.quota.quota_files,
            };
            show(context, &client.register(&user).await?)
        }
        Users::Change { username, password: wanted, source, fields } => {
            let new_password = if wanted || source.password_file.is_some() {
                let prompt = format!("New password of {}: ", output::escape(&username));
                Some(password(source.password_file.as_deref(), "TANDEM_NEW_PASSWORD", &prompt, true)?)
            } else {
                None
            };
            let change = ChangeUser {
                role: fields.role.map(Role::from),
                disabled: None,
                quota_bytes: fields.quota.quota_bytes,
                quota_files: fields.quota.quota_files,
                password: new_password,
            };
            if change.role.is_none()
                && change.quota_bytes.is_none()
                && change.quota_files.is_none()
                && change.password.is_none()
            {
                return Err(Failure::Usage(
                    "say what is to change: --role, --quota-bytes, --quota-files, --password".into(),
                ));
            }
            show(context, &client.change_user(&username, &change).await?)
        }
        Users::Disable { username } => set_disabled(context, &username, true).await,
        Users::Enable { username } => set_disabled(context, &username, false).await,
        Users::Delete { username } => {
            client.delete_user(&username).await?;
            context.show(&serde_json::json!({ "deleted": username }), |_| {
                format!("{} is deleted.", output::escape(&username))
            })
        }
    }
}

async fn set_disabled(context: &Context, username: &str, disabled: bool) -> Outcome {
    let change = ChangeUser { disabled: Some(disabled), ..ChangeUser::default() };
    show(context, &context.client.change_user(username, &change).await?)
}

fn show(context: &Context, user: &User) -> Outcome {
    context.show(user, |user| table(std::slice::from_ref(user)))
}

async fn list(context: &Context) -> Outcome {
    let mut all = UserPage { users: Vec::new(), next_cursor: None };
    loop {
        let page = context.client.list_users(all.next_cursor.as_deref()).await?;
        let more = !page.users.is_empty();
        all.users.extend(page.users);
        all.next_cursor = page.next_cursor;
        if all.next_cursor.is_none() || !more {
            return context.show(&all, |all| table(&all.users));
        }
    }
}

fn table(users: &[User]) -> String {
    let row = |user: &User| {
        vec![
            user.username.clone(),
            match user.role {
                Role::Admin => "admin".to_owned(),
                Role::User => "user".to_owned(),
            },
            if user.disabled { "disabled".to_owned() } else { "active".to_owned() },
            output::limit(user.quota_bytes),
            user.quota_files.map_or_else(|| "no limit".to_owned(), |files| files.to_string()),
            output::seconds_of(&user.created),
        ]
    };
    let rows: Vec<_> = users.iter().map(row).collect();
    output::table(&["NAME", "ROLE", "STATE", "QUOTA", "FILES", "CREATED"], &rows)
}
