//! What the documents say in tables is what the code says.

use std::collections::BTreeMap;

use serde_json::Value;
use tandemd::settings::Settings;
use tandemfs::ErrorKind;

/// The rows of a document's tables, each with its cells.
fn rows(document: &str) -> Vec<Vec<String>> {
    let path = format!("{}/docs/{document}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the document");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with('|')).map(cells).collect()
}

fn codes_in(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_setting_is_described_with_its_default() {
    let Value::Object(settings) = serde_json::to_value(Settings::default()).unwrap() else {
        panic!("not a table")
    };
    let expected: BTreeMap<String, String> = settings
        .into_iter()
        .map(|(name, value)| (name, if value.is_null() { "none".to_owned() } else { format!("`{value}`") }))
        .collect();
    let described: BTreeMap<String, String> = rows("operations.md")
        .into_iter()
        .filter(|row| row.len() == 3)
        .filter_map(|row| Some((codes_in(&row[0]).pop()?, row[1].clone())))
        .collect();
    assert_eq!(described, expected);
}

#[test]
fn every_error_is_described_with_its_status() {
    let expected: BTreeMap<String, String> =
        ErrorKind::ALL.iter().map(|kind| (kind.code().to_owned(), kind.http_status().to_string())).collect();
    let mut described = BTreeMap::new();
    for row in rows("api.md") {
        for pair in [(0, 1), (3, 4)] {
            if let (Some(codes), Some(status)) = (row.get(pair.0), row.get(pair.1)) {
                described.extend(codes_in(codes).into_iter().map(|code| (code, status.clone())));
            }
        }
    }
    assert_eq!(described, expected);
}
