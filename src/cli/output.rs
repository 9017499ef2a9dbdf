//! What people see: escaped names, sizes, tables, progress.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tandemfs::Error;

use super::failure::{Failure, Outcome};

/// Writes a line to standard output.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(output_failed)
}

/// Writes a value as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Outcome {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Error::internal("an answer that JSON cannot say").because(error))?;
    print(&json)
}

/// What an error of standard output means.
pub(crate) fn output_failed(error: std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::Failed(Error::from(error)),
    }
}

/// Text with everything escaped that a terminal might obey or that changes how the text around it is shown: control characters,
/// and marks that turn the direction of writing.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let harmful = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        if harmful(letter) {
            escaped.extend(letter.escape_default());
        } else {
            escaped.push(letter);
        }
    }
    Cow::Owned(escaped)
}

/// Bytes in the largest unit that leaves at least one.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit = (bytes.ilog2() / 10) as usize;
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let number = bytes as f64 / 1024_f64.powi(i32::try_from(unit).unwrap_or(0));
    format!("{number:.1} {}", UNITS[unit - 1])
}

/// Bytes, or that there is no limit.
pub(crate) fn limit(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "no limit".to_owned(), size)
}

/// A value, or a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A time of the API to the second.
pub(crate) fn seconds_of(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

/// Rows under headings.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let headings = headings.iter().map(|&heading| heading.to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(headings).chain(rows.iter().cloned()).collect();
    columns(&all)
}

/// Rows; the columns are as wide as what is in them.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &Vec<Cow<'_, str>>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A bar on standard error for bytes that move; nothing where nobody looks.
pub(crate) fn bytes_bar(name: &str, total: Option<u64>, quiet: bool) -> ProgressBar {
    let template = match total {
        Some(_) => "{wide_msg}  {bar:20} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}",
        None => "{wide_msg}  {spinner} {binary_bytes}  {binary_bytes_per_sec}",
    };
    bar(name, total, template, quiet)
}

/// The same for blocks.
pub(crate) fn blocks_bar(name: &str, quiet: bool) -> ProgressBar {
    bar(name, Some(0), "{wide_msg}  {bar:20} {pos}/{len} blocks  {eta}", quiet)
}

/// The name is cut where the line would be longer than the terminal is wide.
fn bar(name: &str, total: Option<u64>, template: &str, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(escape(name).into_owned());
    if !quiet && std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::{escape, size, table};

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        assert_eq!(escape("plain é 漢"), "plain é 漢");
        assert_eq!(escape("a\x1b[2Jb\r\n\u{9b}c\u{202e}d"), "a\\u{1b}[2Jb\\r\\n\\u{9b}c\\u{202e}d");
        assert_eq!(table(&["NAME"], &[vec!["a\nb".into()]]), "NAME\na\\nb");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
