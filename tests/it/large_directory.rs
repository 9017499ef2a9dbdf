//! A directory with many entries: the short form of what `scripts/large-directory` does with a million (security.md D9).

use super::cluster::program;
use super::shell::sh;

#[test]
fn a_large_directory_is_listed_and_removed_in_little_memory() {
    let directory = tempfile::TempDir::with_prefix("tandem-it-").expect("a temporary directory");
    let programs = program("tandemd");
    let programs = programs.parent().expect("a directory").display();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/large-directory");
    let table = sh(directory.path(), &format!("{script} 10000 --programs {programs} --work . --untimed"));
    println!("{table}");
    assert!(table.contains("until no removed file counts"), "{table}");
}
