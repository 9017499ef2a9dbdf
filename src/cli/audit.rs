//! `tandem admin audit`

use tandemfs::Error;
use tandemfs::api::audit::{AuditCheck, AuditEntry, AuditPage};

use super::failure::Outcome;
use super::{Context, output};

/// Entries that are asked for at once.
const PAGE: usize = 1000;

/// Shows so many of the newest entries, the newest last.
pub(super) async fn show(context: &Context, limit: usize) -> Outcome {
    let mut all = AuditPage { entries: Vec::new(), next_cursor: None };
    while all.entries.len() < limit {
        // At most 1000, so it fits.
        let size = (limit - all.entries.len()).min(PAGE) as u32;
        let page = context.client.audit(size, all.next_cursor.as_deref()).await?;
        all.entries.extend(page.entries);
        all.next_cursor = page.next_cursor;
        if all.next_cursor.is_none() {
            break;
        }
    }
    all.entries.reverse();
    context.show(&all, |all| table(&all.entries))
}

/// Checks the chain; that something is wrong is a failure.
pub(super) async fn verify(context: &Context) -> Outcome {
    let check = context.client.verify_audit().await?;
    context.show(&check, text)?;
    if check.whole { Ok(()) } else { Err(Error::corrupt("the audit log is not whole").into()) }
}

fn text(check: &AuditCheck) -> String {
    let mut lines: Vec<_> =
        check.faults.iter().map(|fault| output::escape(&fault.what).into_owned()).collect();
    if check.whole {
        let AuditCheck { entries, first, last, .. } = check;
        lines.push(format!("The audit log is whole: {entries} entries, {first} to {last}."));
    }
    lines.join("\n")
}

fn table(entries: &[AuditEntry]) -> String {
    let row = |entry: &AuditEntry| {
        vec![
            entry.number.to_string(),
            output::seconds_of(&entry.time),
            entry.who.clone(),
            output::or_dash(entry.from.as_deref()),
            entry.what.clone(),
            entry.object.clone(),
            entry.result.clone(),
        ]
    };
    let headings = ["ENTRY", "TIME", "WHO", "FROM", "WHAT", "OBJECT", "RESULT"];
    output::table(&headings, &entries.iter().map(row).collect::<Vec<_>>())
}
