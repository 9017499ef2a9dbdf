//! A daemon with many small files: the short form of what `scripts/million-files` does with a million (faults.md R9, M3, P6).

use super::cluster::program;
use super::shell::sh;

#[test]
fn many_small_files_survive_a_kill_a_loss_and_a_restore() {
    let directory = tempfile::TempDir::with_prefix("tandem-it-").expect("a temporary directory");
    let programs = program("tandemd");
    let programs = programs.parent().expect("a directory").display();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/million-files");
    let table =
        sh(directory.path(), &format!("{script} --files 5000 --programs {programs} --work . --untimed"));
    println!("{table}");
    assert!(table.contains("what is stored at the end"), "{table}");
}
