//! `tandem volumes`, `tandem admin volumes`, `tandem admin grants`

use tandemfs::api::volumes::{
    Access, ChangeVolume, Grant, GrantPage, NewGrant, NewVolume, Volume, VolumePage,
};

use super::arguments::{Grants, Volumes};
use super::failure::{Failure, Outcome};
use super::{Context, output};

/// Runs a command about volumes.
pub(super) async fn run(context: &Context, command: Volumes) -> Outcome {
    let client = &context.client;
    match command {
        Volumes::List => list(context).await,
        Volumes::Add { name, quota } => {
            let (quota_bytes, quota_files) = (quota.quota_bytes, quota.quota_files);
            show(context, &client.create_volume(&NewVolume { name, quota_bytes, quota_files }).await?)
        }
        Volumes::Change { name, quota } => {
            let change = ChangeVolume { quota_bytes: quota.quota_bytes, quota_files: quota.quota_files };
            if change.quota_bytes.is_none() && change.quota_files.is_none() {
                return Err(Failure::Usage("say what is to change: --quota-bytes, --quota-files".into()));
            }
            show(context, &client.change_volume(&name, &change).await?)
        }
        Volumes::Delete { name } => {
            client.delete_volume(&name).await?;
            context.show(&serde_json::json!({ "deleted": name }), |_| {
                format!("{} is deleted.", output::escape(&name))
            })
        }
    }
}

/// Lists the shared volumes that the user may know of.
pub(super) async fn list(context: &Context) -> Outcome {
    let mut all = VolumePage { volumes: Vec::new(), next_cursor: None };
    loop {
        let page = context.client.list_volumes(all.next_cursor.as_deref()).await?;
        let more = !page.volumes.is_empty();
        all.volumes.extend(page.volumes);
        all.next_cursor = page.next_cursor;
        if all.next_cursor.is_none() || !more {
            return context.show(&all, |all| volumes_table(&all.volumes));
        }
    }
}

/// Runs a command about grants.
pub(super) async fn run_grants(context: &Context, command: Grants) -> Outcome {
    let client = &context.client;
    match command {
        Grants::List { volume } => {
            let mut all = GrantPage { grants: Vec::new(), next_cursor: None };
            loop {
                let page = client.list_grants(&volume, all.next_cursor.as_deref()).await?;
                all.grants.extend(page.grants);
                all.next_cursor = page.next_cursor;
                if all.next_cursor.is_none() {
                    return context.show(&all, |all| grants_table(&all.grants));
                }
            }
        }
        Grants::Set { volume, username, access } => {
            let grant = NewGrant { access: access.into() };
            let grant = client.grant(&volume, &username, &grant).await?;
            context.show(&grant, |grant| grants_table(std::slice::from_ref(grant)))
        }
        Grants::Revoke { volume, username } => {
            client.revoke_grant(&volume, &username).await?;
            context.show(
                &serde_json::json!({ "revoked": { "volume": volume, "username": username } }),
                |_| {
                    format!("{} may not use {} any more.", output::escape(&username), output::escape(&volume))
                },
            )
        }
    }
}

fn show(context: &Context, volume: &Volume) -> Outcome {
    context.show(volume, |volume| volumes_table(std::slice::from_ref(volume)))
}

fn word(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

fn volumes_table(volumes: &[Volume]) -> String {
    let row = |volume: &Volume| {
        let storage = &volume.storage;
        vec![
            volume.name.clone(),
            volume.volume_id.to_string(),
            output::or_dash(volume.access.map(word)),
            output::size(storage.used_bytes),
            output::limit(storage.quota_bytes),
            storage.files.to_string(),
            storage.quota_files.map_or_else(|| "no limit".to_owned(), |files| files.to_string()),
            output::seconds_of(&volume.created),
        ]
    };
    let headings = ["NAME", "VOLUME", "ACCESS", "USED", "QUOTA", "FILES", "QUOTA", "CREATED"];
    output::table(&headings, &volumes.iter().map(row).collect::<Vec<_>>())
}

fn grants_table(grants: &[Grant]) -> String {
    let row = |grant: &Grant| vec![grant.username.clone(), word(grant.access).to_owned()];
    output::table(&["USER", "ACCESS"], &grants.iter().map(row).collect::<Vec<_>>())
}
