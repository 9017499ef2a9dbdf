//! `tandem status`, `tandem storage`

use tandemfs::api::files::{Health, Status, Storage};

use super::failure::Outcome;
use super::{Context, output};

/// `tandem status`
pub(super) async fn status(context: &Context) -> Outcome {
    let status = context.client.status().await?;
    context.show(&status, status_text)
}

fn status_text(status: &Status) -> String {
    let word = match status.status {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
    };
    let (nodes, blocks) = (&status.nodes, &status.blocks);
    let mut lines = vec![
        word.to_owned(),
        format!("nodes    {} of {} healthy, {} failed", nodes.healthy, nodes.total, nodes.failed),
        format!(
            "blocks   {} in {} copies each; {} under-replicated, {} lost",
            blocks.total, status.replicas, blocks.under_replicated, blocks.lost
        ),
        format!(
            "journal  {} commits, {} in {} segments, {} snapshots; {} under-replicated",
            status.journal.position,
            output::size(status.journal.bytes),
            status.journal.segments,
            status.journal.snapshots,
            status.journal.under_replicated
        ),
        match &status.last_scrub {
            Some(scrub) => format!(
                "scrub    {}, {} bad copies found",
                output::seconds_of(&scrub.ended),
                scrub.bad_copies
            ),
            None => "scrub    none yet".to_owned(),
        },
        format!("daemon   version {}, up {}", output::escape(&status.version), duration(status.uptime_s)),
    ];
    lines.extend(status.warnings.iter().map(|warning| format!("WARNING  {}", output::escape(warning))));
    lines.join("\n")
}

/// `tandem storage`
pub(super) async fn storage(context: &Context) -> Outcome {
    let storage: Storage = context.client.storage().await?;
    context.show(&storage, |storage| {
        format!(
            "used       {} of {}\navailable  {}\nfiles      {} of {}",
            output::size(storage.used_bytes),
            output::limit(storage.quota_bytes),
            output::size(storage.available_bytes),
            storage.files,
            storage.quota_files.map_or_else(|| "no limit".to_owned(), |files| files.to_string()),
        )
    })
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
