//! What is told of a check.

/// Lines that are kept; more are counted.
pub(crate) const LINES_MAX: usize = 1000;
/// The longest line, in bytes.
const LINE_MAX: usize = 2000;

/// What a check has found, and what has become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line for each fault that was mended, as far as there is room.
    pub mended_lines: Vec<String>,
    /// Faults that were mended.
    pub mended: u64,
    /// One line for each fault that is left, as far as there is room.
    pub left_lines: Vec<String>,
    /// Faults that are left.
    pub left: u64,
    /// What is no fault and should be known.
    pub notes: Vec<String>,
}

fn keep(lines: &mut Vec<String>, mut line: String) {
    if line.len() > LINE_MAX {
        let cut = (0..LINE_MAX).rev().find(|at| line.is_char_boundary(*at));
        line.truncate(cut.unwrap_or(0));
        line.push('…');
    }
    if lines.len() < LINES_MAX {
        lines.push(line);
    }
}

impl Report {
    /// A fault that was mended.
    pub(crate) fn mend(&mut self, line: String) {
        self.mended += 1;
        keep(&mut self.mended_lines, line);
    }

    /// A fault that is left.
    pub(crate) fn leave(&mut self, line: String) {
        self.left += 1;
        keep(&mut self.left_lines, line);
    }

    /// Something that is no fault.
    pub(crate) fn note(&mut self, line: String) {
        if !self.notes.contains(&line) {
            keep(&mut self.notes, line);
        }
    }

    /// Adds what another check has found.
    pub(crate) fn add(&mut self, other: Self) {
        self.mended += other.mended;
        self.left += other.left;
        other.mended_lines.into_iter().for_each(|line| keep(&mut self.mended_lines, line));
        other.left_lines.into_iter().for_each(|line| keep(&mut self.left_lines, line));
        other.notes.into_iter().for_each(|line| self.note(line));
    }

    /// Whether nothing is wrong any more.
    pub fn is_clean(&self) -> bool {
        self.left == 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut tell = |word: &str, kept: &[String], count: u64| {
            lines.extend(kept.iter().map(|line| format!("{word}: {line}")));
            let more = count.saturating_sub(kept.len() as u64);
            if more > 0 {
                lines.push(format!("{word}: {more} more"));
            }
        };
        tell("note", &self.notes, 0);
        tell("mended", &self.mended_lines, self.mended);
        tell("fault", &self.left_lines, self.left);
        lines.push(match (self.mended, self.left) {
            (0, 0) => "clean".to_owned(),
            (mended, 0) => format!("{mended} faults, all mended"),
            (0, left) => format!("{left} faults"),
            (mended, left) => format!("{mended} faults mended, {left} left"),
        });
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::{LINE_MAX, LINES_MAX, Report};

    #[test]
    fn a_report_is_bounded_and_sums_up() {
        let mut report = Report::default();
        assert_eq!(report.text(), "clean");
        report.note("by the way".to_owned());
        report.note("by the way".to_owned());
        report.mend("one".to_owned());
        assert_eq!(report.text(), "note: by the way\nmended: one\n1 faults, all mended");
        let mut long = Report::default();
        long.note("ä".repeat(LINE_MAX));
        assert!(long.notes[0].len() <= LINE_MAX + 3 && long.notes[0].ends_with('…'));
        for number in 0..LINES_MAX + 5 {
            report.leave(number.to_string());
        }
        assert!(!report.is_clean());
        let text = report.text();
        assert_eq!(text.lines().count(), LINES_MAX + 4);
        assert!(text.ends_with("fault: 5 more\n1 faults mended, 1005 left"), "{text}");
    }
}
