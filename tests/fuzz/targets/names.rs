//! Names, paths and ids.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandemfs::id::{BlockId, FileId, Ino, NodeId};
use tandemfs::name::{Name, PATH_MAX, check_plain, join_path, split_path};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(name) = Name::new(bytes) {
        assert!((1..=255).contains(&name.as_bytes().len()));
        assert!(!name.as_bytes().iter().any(|byte| [0, b'/'].contains(byte)));
    }
    if let Ok(names) = split_path(bytes) {
        assert!(names.iter().all(|name| name.as_bytes() != b".." && name.as_bytes() != b"."));
        // Joined it has one slash more than it may have had.
        assert!(bytes.len() == PATH_MAX || split_path(join_path(&names)).is_ok_and(|again| again == names));
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = check_plain("a name", &text);
    if let Ok(file) = text.parse::<FileId>() {
        assert_eq!(file.to_string(), text, "one spelling for one file");
    }
    if let Ok(block) = text.parse::<BlockId>() {
        assert!(block.to_string().parse::<BlockId>().is_ok_and(|again| again == block));
    }
    let _ = (text.parse::<NodeId>(), text.parse::<Ino>());
});
